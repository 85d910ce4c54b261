"""A server of the protocol over both transports, whose answers a mutant may change: the one that a request names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import grpc.aio
import pytest
import uvicorn
from grpc_reflection.v1alpha import reflection

from tidepool.conformance.case import Transport
from tidepool.conformance.rest import RestTarget
from tidepool.conformance.rpc import GrpcTarget
from tidepool.conformance.session import Session
from tidepool.recipe import Signature, TensorSpec
from tidepool.serve.batching import Batcher
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion
from tidepool.serve.grpc import SERVICE, Servicer, add_to_server
from tidepool.serve.protocol import Tensors
from tidepool.serve.rest import ModelApp
from tidepool.serve.stacking import Stacking

LIMIT = 16_000_000
MODELS = {
    "many": (
        TensorSpec("a", "FP32", (-1, 4)),
        TensorSpec("n", "INT8", (-1, 2)),
        TensorSpec("w", "BYTES", (-1,)),
        TensorSpec("f", "BOOL", (-1, 1)),
        TensorSpec("u", "UINT64", (-1,)),
    ),
    "half": (TensorSpec("h", "FP16", (-1, 3)),),
}


def echo(version: str, signature: Signature) -> LoadedVersion:
    """A version of a model that returns its inputs."""

    def answer(inputs: Tensors) -> Tensors:
        return {spec.name: inputs[spec.name] for spec in signature.outputs}

    return LoadedVersion(version, "d", signature, answer, Batcher(answer, Stacking(signature.inputs), 0.1))


def echoing(model: str) -> Dataplane:
    signature = Signature(MODELS[model], MODELS[model])
    versions = {number: echo(number, signature) for number in ("1", "2")}
    plane = Dataplane(model)
    plane.flip(Lineup("2", versions))
    return plane


@dataclass
class Told:
    """An HTTP response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    def changed(self, change: Callable[[Any], Any]) -> Told:
        """The same with another JSON object, if it is a success without raw tensors."""
        if self.status != 200 or b"inference-header-content-length" in self.headers:
            return self
        return replace(self, body=json.dumps(change(json.loads(self.body))).encode())


@dataclass
class Asked:
    """An HTTP request."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes

    @property
    def infers(self) -> bool:
        return self.path.endswith("/infer")

    def document(self) -> Any:
        """Its JSON, or None."""
        length = int(self.headers.get(b"inference-header-content-length", len(self.body)))
        with contextlib.suppress(ValueError):
            return json.loads(self.body[:length])
        return None

    def told(self, status: int, document: Any) -> Told:
        """A response in JSON."""
        return Told(status, {b"content-type": b"application/json"}, json.dumps(document).encode())


RestMutant = Callable[[Asked, Callable[[Asked], Awaitable[Told]]], Awaitable[Told]]
"""Gets a request and what the good server would answer."""


class Web:
    """The ASGI application: `ModelApp`s, and what is about no model."""

    def __init__(self, planes: list[Dataplane], mutants: dict[str, RestMutant]) -> None:
        self._apps = {plane.model: ModelApp(plane, None, LIMIT) for plane in planes}
        self._mutants = mutants

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        asked = Asked(scope["method"], scope["path"], dict(scope["headers"]), body)
        mutant = self._mutants.get(asked.headers.get(b"x-mutant", b"").decode())
        told = await (mutant(asked, self._ask) if mutant else self._ask(asked))
        headers = {**told.headers, b"content-length": str(len(told.body)).encode()}
        await send({"type": "http.response.start", "status": told.status, "headers": list(headers.items())})
        await send({"type": "http.response.body", "body": told.body})

    async def _ask(self, asked: Asked) -> Told:
        match asked.path.rstrip("/").split("/")[1:]:
            case ["v2"]:
                extensions = ["binary_tensor_data", "model_repository"]
                return asked.told(200, {"name": "tidepool", "version": "1", "extensions": extensions})
            case ["v2", "health", "live" | "ready" as what]:
                return asked.told(200, {what: True})
            case ["v2", "repository", "index"]:
                return asked.told(200, [{"name": model, "state": "READY"} for model in self._apps])
            case ["v2", "models", model, *_] if model in self._apps:
                return await self._model(model, asked)
        return asked.told(404, {"error": f"no such path or model: {asked.path}"})

    async def _model(self, model: str, asked: Asked) -> Told:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": asked.body}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": asked.method, "path": asked.path, "headers": list(asked.headers.items())}
        await self._apps[model]({**scope, "root_path": f"/v2/models/{model}"}, receive, send)
        start, *parts = sent
        return Told(start["status"], dict(start["headers"]), b"".join(part.get("body", b"") for part in parts))


GrpcMutant = Callable[[str, Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]
"""Gets a call's name, its request, and what the good server would answer: a message, or (code, details).

Returns a message or (code, details).
"""


class Calls:
    """The gRPC service: a servicer for each model."""

    def __init__(self, planes: list[Dataplane], mutants: dict[str, GrpcMutant]) -> None:
        self._servicers = {plane.model: Servicer(plane, None, LIMIT) for plane in planes}
        self._mutants = mutants

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            model = getattr(request, "model_name", "") or getattr(request, "name", "")
            servicer = self._servicers.get(model, next(iter(self._servicers.values())))

            async def ask() -> Any:
                answer = await getattr(servicer, name)(request, context)
                return (context.code(), context.details()) if context.code() else answer

            mutant = self._mutants.get(dict(context.invocation_metadata()).get("x-mutant", ""))
            answer = await (mutant(name, request, ask) if mutant else ask())
            code, details = answer if isinstance(answer, tuple) else (grpc.StatusCode.OK, "")
            context.set_code(code)
            context.set_details(details)
            return None if isinstance(answer, tuple) else answer

        return call


@dataclass
class Server:
    """Where the server listens, and its mutants by name."""

    url: str = ""
    grpc: str = ""
    rest_mutants: dict[str, RestMutant] = field(default_factory=dict)
    grpc_mutants: dict[str, GrpcMutant] = field(default_factory=dict)

    def rest(self, model: str = "many", mutant: str = "") -> Session:
        return Session(RestTarget(self.url, {"x-mutant": mutant} if mutant else {}, 10), model)

    def rpc(self, model: str = "many", mutant: str = "") -> Session:
        target = GrpcTarget(self.grpc, {"x-mutant": mutant} if mutant else {}, 10)
        return Session(target, model, other=self.rest(model))

    def session(self, transport: Transport, model: str = "many") -> Session:
        return self.rest(model) if transport is Transport.REST else self.rpc(model)


@contextlib.contextmanager
def serving(planes: list[Dataplane]) -> Iterator[Server]:
    """Both servers in a thread with an event loop of its own."""
    server = Server()
    # Only of a socket that is said to be TCP does asyncio switch off the delay of small packets.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    server.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    web = uvicorn.Server(
        uvicorn.Config(Web(planes, server.rest_mutants), log_level="critical", lifespan="off", ws="none")
    )

    async def check_health(request: bytes, context: Any) -> bytes:
        ill = dict(context.invocation_metadata()).get("x-mutant") == "grpc.health"
        return b"\x08\x02" if ill else b"\x08\x01"

    async def serve() -> None:
        calls = grpc.aio.server()
        add_to_server(Calls(planes, server.grpc_mutants), calls)
        reflection.enable_server_reflection((SERVICE,), calls)
        health = {"Check": grpc.unary_unary_rpc_method_handler(check_health)}
        calls.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),))
        server.grpc = f"127.0.0.1:{calls.add_insecure_port('127.0.0.1:0')}"
        await calls.start()
        await web.serve(sockets=[listener])
        await calls.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while not web.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield server
    web.should_exit = True
    thread.join(10)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A server with two models: `many` takes tensors of five datatypes, `half` one of FP16."""
    with serving([echoing(model) for model in MODELS]) as running:
        yield running


@pytest.fixture(scope="session")
def serve() -> Callable[[list[Dataplane]], AbstractContextManager[Server]]:
    """Starts a server with models of one's own."""
    return serving
