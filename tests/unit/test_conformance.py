"""The conformance suite against our own server, and against servers that each break one rule."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import grpc
import grpc.aio
import numpy as np
import pytest
import uvicorn
from grpc_reflection.v1alpha import reflection

from tidepool.artifact import open_artifact
from tidepool.conformance.__main__ import main
from tidepool.conformance.case import Case, Transport
from tidepool.conformance.cases import CASES
from tidepool.conformance.rest import RestTarget
from tidepool.conformance.rpc import GrpcTarget
from tidepool.conformance.runner import Verdict, check
from tidepool.conformance.session import Session
from tidepool.recipe import Signature, TensorSpec
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion, load_version
from tidepool.serve.grpc import SERVICE, Servicer, add_to_server
from tidepool.serve.protocol import Tensors
from tidepool.serve.rest import ModelApp

MANY = (
    TensorSpec("a", "FP32", (-1, 4)),
    TensorSpec("n", "INT8", (-1, 2)),
    TensorSpec("w", "BYTES", (-1,)),
    TensorSpec("f", "BOOL", (-1, 1)),
    TensorSpec("u", "UINT64", (-1,)),
)
HALF = (TensorSpec("h", "FP16", (-1, 3)),)


class Echo(LoadedVersion):
    """A version of a model that returns its inputs."""

    def answer(self, inputs: Tensors) -> Tensors:
        return {spec.name: inputs[spec.name] for spec in self.signature.outputs}


def echoing(model: str, specs: tuple[TensorSpec, ...]) -> Dataplane:
    signature = Signature(specs, specs)
    nothing: Any = None
    plane = Dataplane(model)
    plane.flip(Lineup("2", {v: Echo(v, "d", nothing, nothing, nothing, signature) for v in ("1", "2")}))
    return plane


# --- a server whose answers a mutant, named by the x-mutant header, may change ---


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
        try:
            return json.loads(self.body[: int(self.headers.get(b"inference-header-content-length", len(self.body)))])
        except ValueError:
            return None


@dataclass
class Told:
    """An HTTP response."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes

    def changed(self, change: Callable[[Any], Any]) -> Told:
        """The same with another JSON object, where it has one."""
        if self.status != 200 or b"inference-header-content-length" in self.headers:
            return self
        return replace(self, body=json.dumps(change(json.loads(self.body))).encode())


Ask = Callable[[Asked], Awaitable[Told]]
RestMutant = Callable[[Asked, Ask], Awaitable[Told]]


def json_told(status: int, document: Any) -> Told:
    return Told(status, {b"content-type": b"application/json"}, json.dumps(document).encode())


class Web:
    """The application: our `ModelApp`s and what is about no model, under the mutant that a request names."""

    def __init__(self, planes: list[Dataplane], mutants: dict[str, RestMutant]) -> None:
        self._apps = {plane.model: ModelApp(plane, None, 16_000_000) for plane in planes}
        self._mutants = mutants

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
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
                return json_told(200, {"name": "tidepool", "version": "1", "extensions": extensions})
            case ["v2", "health", "live" | "ready" as what]:
                return json_told(200, {what: True})
            case ["v2", "repository", "index"]:
                return json_told(200, [{"name": model, "state": "READY"} for model in self._apps])
            case ["v2", "models", model, *_] if model in self._apps:
                return await self._model(model, asked)
        return json_told(404, {"error": f"no such path or model: {asked.path}"})

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


class Calls:
    """The gRPC service: a servicer for each model, under the mutant that a call names."""

    def __init__(self, planes: list[Dataplane], mutants: dict[str, GrpcMutant]) -> None:
        self._servicers = {plane.model: Servicer(plane, None, 16_000_000) for plane in planes}
        self._mutants = mutants

    def __getattr__(self, name: str) -> Any:
        async def call(request: Any, context: Any) -> Any:
            model = getattr(request, "model_name", "") or getattr(request, "name", "")
            servicer = self._servicers.get(model, next(iter(self._servicers.values())))
            mutant = self._mutants.get(dict(context.invocation_metadata()).get("x-mutant", ""))
            if mutant is None:
                return await getattr(servicer, name)(request, context)

            async def ask() -> Any:
                answer = await getattr(servicer, name)(request, context)
                if context.code():
                    refused.append((context.code(), context.details()))
                    context.set_code(grpc.StatusCode.OK)
                    context.set_details("")
                return answer

            refused: list[Any] = []
            try:
                answer = await mutant(name, request, ask)
            except Broken as broken:
                await context.abort(broken.code, broken.details)
            if refused and answer is not None and not answer.ByteSize():
                await context.abort(*refused[0])
            return answer

        return call


class Broken(Exception):
    """What a gRPC mutant answers instead of an error of its own."""

    def __init__(self, code: grpc.StatusCode, details: str = "") -> None:
        self.code, self.details = code, details


@dataclass
class Server:
    """Where the server listens."""

    url: str
    grpc: str

    def session(self, transport: Transport, model: str = "many", mutant: str = "") -> Session:
        headers = {"x-mutant": mutant} if mutant else {}
        rest = RestTarget(self.url, headers if transport is Transport.REST else {}, 10)
        if transport is Transport.REST:
            return Session(rest, model)
        return Session(GrpcTarget(self.grpc, headers, 10), model, other=Session(rest, model))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    planes = [echoing("many", MANY), echoing("half", HALF)]
    with serving(planes) as running:
        yield running


@contextlib.contextmanager
def serving(planes: list[Dataplane]) -> Iterator[Server]:
    """Both servers in a thread with an event loop of its own."""
    # Only of a socket that is said to be TCP does asyncio switch off the delay of small packets.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    web = uvicorn.Server(uvicorn.Config(Web(planes, REST_MUTANTS), log_level="critical", lifespan="off"))
    ports: list[int] = []

    async def serve() -> None:
        calls = grpc.aio.server()
        add_to_server(Calls(planes, GRPC_MUTANTS), calls)
        reflection.enable_server_reflection((SERVICE,), calls)
        health = {"Check": grpc.unary_unary_rpc_method_handler(check_health)}
        calls.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.health.v1.Health", health),))
        ports.append(calls.add_insecure_port("127.0.0.1:0"))
        await calls.start()
        await web.serve(sockets=[listener])
        await calls.stop(None)

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    while not web.started:
        thread.join(0.01)
        assert thread.is_alive()
    yield Server(f"http://127.0.0.1:{listener.getsockname()[1]}", f"127.0.0.1:{ports[0]}")
    web.should_exit = True
    thread.join(10)


async def check_health(request: bytes, context: Any) -> bytes:
    mutant = dict(context.invocation_metadata()).get("x-mutant")
    return b"\x08\x02" if mutant == "grpc.health" else b"\x08\x01"


# --- mutants over REST ---

CANNED: dict[str, Any] = {}


def told(path_has: str, status: int, document: Any) -> RestMutant:
    """Answer every path that has `path_has` in it so."""

    async def mutant(asked: Asked, ask: Ask) -> Told:
        return json_told(status, document) if path_has in asked.path else await ask(asked)

    return mutant


def changed(change: Callable[[Any], Any], path_has: str = "") -> RestMutant:
    """Change the JSON object of every proper answer."""

    async def mutant(asked: Asked, ask: Ask) -> Told:
        answer = await ask(asked)
        return answer.changed(change) if path_has in asked.path else answer

    return mutant


def refusing(wrong: Callable[[Asked], bool], status: int = 400) -> RestMutant:
    """Refuse proper inference requests that have something harmless about them."""

    async def mutant(asked: Asked, ask: Ask) -> Told:
        return json_told(status, {"error": "no"}) if asked.infers and wrong(asked) else await ask(asked)

    return mutant


async def lenient(asked: Asked, ask: Ask) -> Told:
    """Answer whatever is wrong with the answer to something right."""
    answer = await ask(asked)
    if asked.infers and answer.status == 200 and b"inference-header-content-length" not in answer.headers:
        CANNED["infer"] = answer
    return CANNED["infer"] if asked.infers and answer.status != 200 else answer


def errors(change: Callable[[Told], Told]) -> RestMutant:
    """Change every error."""

    async def mutant(asked: Asked, ask: Ask) -> Told:
        answer = await ask(asked)
        return change(answer) if answer.status >= 400 else answer

    return mutant


def without(*members: str) -> Callable[[Any], Any]:
    return lambda document: {key: value for key, value in document.items() if key not in members}


def forgetting(*, outputs: bool = False, output_parameters: bool = False, parameters: bool = False) -> RestMutant:
    """Overlook parts of a request."""

    async def mutant(asked: Asked, ask: Ask) -> Told:
        document = asked.document()
        if not asked.infers or not isinstance(document, dict) or b"inference-header-content-length" in asked.headers:
            return await ask(asked)
        if outputs:
            document.pop("outputs", None)
        if parameters:
            document.pop("parameters", None)
        if output_parameters:
            document["outputs"] = [{"name": o["name"]} for o in document.get("outputs") or []]
        return await ask(replace(asked, body=json.dumps(document).encode()))

    return mutant


def shifted(document: Any) -> Any:
    """Other numbers in the first output."""
    first, *rest = document.get("outputs", [{"data": [0.0]}])
    return {**document, "outputs": [{**first, "data": [value + 1 for value in first["data"]]}, *rest]}


def shifting(when: Callable[[Asked], bool]) -> RestMutant:
    async def mutant(asked: Asked, ask: Ask) -> Told:
        answer = await ask(asked)
        return answer.changed(shifted) if asked.infers and when(asked) else answer

    return mutant


def nth() -> Callable[[Any], bool]:
    """True from the fourth time on."""
    count = iter(range(10**9))
    return lambda asked: next(count) > 3


def rows(asked: Asked) -> int:
    return int(asked.document()["inputs"][0]["shape"][0])


def company() -> RestMutant:
    """Mix up the ids of requests at the same time."""
    present = 0

    async def mutant(asked: Asked, ask: Ask) -> Told:
        nonlocal present
        present += 1
        await asyncio.sleep(0.02)
        answer = await ask(asked)
        crowded, present = present > 1, present - 1
        return answer.changed(lambda document: {**document, "id": "of another"}) if crowded else answer

    return mutant


def dying() -> RestMutant:
    """Fail for good after a refusal."""
    dead = False

    async def mutant(asked: Asked, ask: Ask) -> Told:
        nonlocal dead
        answer = await ask(asked)
        dead = dead or answer.status >= 400
        return json_told(500, {"error": "dead"}) if answer.status == 200 and dead else answer

    return mutant


def headed(name: bytes, value: bytes, status: int = 200) -> RestMutant:
    async def mutant(asked: Asked, ask: Ask) -> Told:
        answer = await ask(asked)
        return replace(answer, headers={**answer.headers, name: value}) if answer.status >= status else answer

    return mutant


def nests(asked: Asked) -> bool:
    return any(isinstance(tensor["data"][0], list) for tensor in asked.document()["inputs"])


METADATA = {"name": "many", "versions": ["1", "2"], "platform": "a_b", "inputs": [], "outputs": []}
no_tensors = changed(lambda d: {**d, "inputs": [{**t, "datatype": "FP31"} for t in d.get("inputs", [])]})

REST_MUTANTS: dict[str, RestMutant] = {
    "health.live": told("/health/live", 503, {}),
    "health.ready": told("/health/ready", 503, {}),
    "health.model": told("many/ready", 503, {}),
    "health.version": told("versions/2/ready", 503, {}),
    "health.unknown-model": told("no-such-thing/ready", 200, {}),
    "health.unknown-version": told("no-such-thing/ready", 200, {}),
    "server.metadata": changed(lambda document: {}, "/v2"),
    "model.metadata": changed(lambda document: {**document, "name": "x"}),
    "model.platform": changed(lambda document: {**document, "platform": "x"}),
    "model.tensors": no_tensors,
    "model.version": changed(lambda document: {**document, "versions": ["9"]}, "/versions/"),
    "model.unknown": told("no-such-thing", 200, METADATA),
    "model.unknown-version": told("no-such-thing", 200, METADATA),
    "infer.answer": changed(lambda d: {**d, "outputs": d["outputs"][1:]} if "model_name" in d else d),
    "infer.id": changed(without("id")),
    "infer.version": changed(lambda document: {**document, "model_version": "2"}, "/infer"),
    "infer.version-named": changed(without("model_version")),
    "infer.outputs": forgetting(outputs=True),
    "infer.input-order": shifting(lambda asked: asked.document()["inputs"][0]["name"] != "a"),
    "infer.parameters": refusing(lambda asked: "parameters" in asked.document()),
    "infer.repeat": shifting(nth()),
    "infer.rows": shifting(lambda asked: rows(asked) > 1),
    "infer.large": refusing(lambda asked: len(asked.body) > 100_000, 413),
    "infer.concurrent": company(),
    "wrong.blame": errors(lambda answer: replace(answer, status=500)),
    "wrong.message": errors(lambda answer: replace(answer, body=b'{"detail": "no"}')),
    "wrong.then-right": dying(),
    "json.nested": refusing(nests),
    "json.content-type": headed(b"content-type", b"text/plain"),
    "json.untyped": refusing(lambda asked: b"content-type" not in asked.headers, 415),
    "json.null-optional": refusing(lambda asked: "outputs" in asked.document()),
    "json.unknown-member": refusing(lambda asked: "x-unknown" in asked.document()),
    "json.kind": errors(lambda answer: replace(answer, status=500)),
    "http.error-shape": errors(lambda answer: replace(answer, body=b'{"detail": "no"}')),
    "http.method": errors(lambda answer: replace(answer, headers={})),
    "http.unknown-path": errors(lambda answer: replace(answer, status=400)),
    "http.chunked": refusing(lambda asked: b"transfer-encoding" in asked.headers, 411),
    "http.keep-alive": headed(b"connection", b"close", 400),
    "http.gzip": refusing(lambda asked: b"content-encoding" in asked.headers),
    "http.deflate": refusing(lambda asked: b"content-encoding" in asked.headers),
    "repository.index": told("/index", 200, [{"name": "many", "state": "UNAVAILABLE"}]),
    "binary.input": refusing(lambda asked: b"inference-header-content-length" in asked.headers),
    "binary.output": forgetting(output_parameters=True),
    "binary.output-all": forgetting(parameters=True),
    "binary.override": forgetting(output_parameters=True),
    "binary.mixed": refusing(lambda asked: b"inference-header-content-length" in asked.headers),
    "binary.content-type": headed(b"content-type", b"application/json"),
}
LENIENT = ("wrong.", "json.broken", "json.incomplete-input", "json.ragged", "json.nan", "json.range", "json.fraction")
LENIENT += (
    "http.broken-gzip",
    "binary.header",
    "binary.no-header",
    "binary.size",
    "binary.left-over",
    "binary.elements",
)
REST_MUTANTS |= {case.id: lenient for case in CASES if case.id.startswith(LENIENT) and case.id not in REST_MUTANTS}


# --- mutants over gRPC ---


def calls(
    name: str, answer: Callable[[Any, Any], Any], when: Callable[[Any], bool] = lambda request: True
) -> GrpcMutant:
    """Change the answer of one call: `answer` gets it and the request."""

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        told = await ask()
        return answer(told, request) if called == name and when(request) else told

    return mutant


def edited(
    edit: Callable[[Any], Any], name: str = "ModelInfer", when: Callable[[Any], bool] = lambda r: True
) -> GrpcMutant:
    """Edit the answer of one call in place."""

    def answer(told: Any, request: Any) -> Any:
        if told.ByteSize():
            edit(told)
        return told

    return calls(name, answer, when)


def declining(when: Callable[[Any], bool], code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> GrpcMutant:
    """Refuse proper requests."""

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        if called == "ModelInfer" and when(request):
            raise Broken(code, "no")
        return await ask()

    return mutant


def failing(code: grpc.StatusCode, details: str) -> GrpcMutant:
    """Give every error another code and other details."""

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        answer = await ask()
        if called == "ModelInfer" and not answer.ByteSize():
            raise Broken(code, details)
        return answer

    return mutant


async def indulgent(called: str, request: Any, ask: Any) -> Any:
    """Answer whatever is wrong with the answer to something right."""
    answer = await ask()
    if called == "ModelInfer" and answer.ByteSize() and not answer.raw_output_contents:
        CANNED["grpc"] = answer
    return CANNED["grpc"] if called == "ModelInfer" and not answer.ByteSize() else answer


def with_company() -> GrpcMutant:
    present = 0

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        nonlocal present
        present += 1
        await asyncio.sleep(0.02)
        answer = await ask()
        crowded, present = present > 1, present - 1
        if crowded:
            answer.id = "of another"
        return answer

    return mutant


def mortal() -> GrpcMutant:
    dead = False

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        nonlocal dead
        answer = await ask()
        if called == "ModelInfer":
            if answer.ByteSize() and dead:
                raise Broken(grpc.StatusCode.INTERNAL, "dead")
            dead = dead or not answer.ByteSize()
        return answer

    return mutant


def shift(answer: Any) -> None:
    first = answer.outputs[0].contents.fp32_contents
    first[:] = [value + 1 for value in first]


def set_field(name: str, value: Any) -> Callable[[Any], None]:
    return lambda answer: setattr(answer, name, value)


def both_forms(answer: Any) -> None:
    answer.outputs[0].contents.fp32_contents.append(0)


def keep_all(answer: Any) -> None:
    answer.outputs.append(answer.outputs[0])


METADATA_MESSAGE = pb.ModelMetadataResponse(name="many")
ready, unready = pb.ModelReadyResponse(ready=True), pb.ModelReadyResponse()

GRPC_MUTANTS: dict[str, GrpcMutant] = {
    "health.live": calls("ServerLive", lambda told, asked: pb.ServerLiveResponse()),
    "health.ready": calls("ServerReady", lambda told, asked: pb.ServerReadyResponse()),
    "health.model": calls("ModelReady", lambda told, asked: unready),
    "health.version": calls("ModelReady", lambda told, asked: unready, lambda asked: asked.version == "2"),
    "health.unknown-model": calls("ModelReady", lambda told, asked: ready),
    "health.unknown-version": calls("ModelReady", lambda told, asked: ready),
    "server.metadata": calls("ServerMetadata", lambda told, asked: pb.ServerMetadataResponse()),
    "model.metadata": edited(set_field("name", "x"), "ModelMetadata"),
    "model.platform": edited(set_field("platform", "x"), "ModelMetadata"),
    "model.tensors": edited(lambda told: told.ClearField("inputs"), "ModelMetadata"),
    "model.version": edited(
        lambda told: told.ClearField("versions"), "ModelMetadata", lambda asked: asked.version != ""
    ),
    "model.unknown": calls("ModelMetadata", lambda told, asked: METADATA_MESSAGE),
    "model.unknown-version": calls("ModelMetadata", lambda told, asked: told if told.name else METADATA_MESSAGE),
    "infer.answer": edited(lambda told: told.outputs.pop()),
    "infer.id": edited(set_field("id", "")),
    "infer.version": edited(set_field("model_version", "2")),
    "infer.version-named": edited(set_field("model_version", "")),
    "infer.outputs": edited(keep_all, when=lambda asked: bool(asked.outputs)),
    "infer.input-order": edited(shift, when=lambda asked: asked.inputs[0].name != "a"),
    "infer.parameters": declining(lambda asked: bool(asked.parameters)),
    "infer.repeat": edited(shift, when=nth()),
    "infer.rows": edited(shift, when=lambda asked: asked.inputs[0].shape[0] > 1),
    "infer.large": declining(lambda asked: asked.ByteSize() > 100_000),
    "infer.concurrent": with_company(),
    "wrong.blame": failing(grpc.StatusCode.INTERNAL, "no"),
    "wrong.message": failing(grpc.StatusCode.INVALID_ARGUMENT, ""),
    "wrong.then-right": mortal(),
    "grpc.raw": declining(lambda asked: bool(asked.raw_input_contents)),
    "grpc.as-rest": edited(shift),
    "grpc.one-form": edited(both_forms, when=lambda asked: bool(asked.raw_input_contents)),
    "grpc.parameters": declining(lambda asked: bool(asked.parameters)),
    "grpc.not-found": failing(grpc.StatusCode.UNKNOWN, "no"),
    "grpc.gzip": declining(lambda asked: bool(asked.raw_input_contents), grpc.StatusCode.INTERNAL),
}
GRPC_MUTANTS |= {
    case.id: indulgent
    for case in CASES
    if case.id.startswith(("wrong.", "grpc.both-forms", "grpc.raw-", "grpc.field")) and case.id not in GRPC_MUTANTS
}
OF_THE_LIBRARY = {"grpc.garbage", "grpc.unknown-call", "grpc.deadline", "grpc.reflection"}
"""Rules that grpcio keeps for every server made with it."""


def pairs(transport: Transport) -> list[Any]:
    return [pytest.param(case, id=case.id) for case in CASES if transport in case.transports]


@pytest.mark.parametrize("case", pairs(Transport.REST))
def test_our_server_keeps_every_rule_of_rest(server: Server, case: Case) -> None:
    outcome = check(case, server.session(Transport.REST))
    assert (outcome.verdict, outcome.reason) == (Verdict.PASS, "")


@pytest.mark.parametrize("case", pairs(Transport.GRPC))
def test_our_server_keeps_every_rule_of_grpc(server: Server, case: Case) -> None:
    outcome = check(case, server.session(Transport.GRPC))
    assert (outcome.verdict, outcome.reason) == (Verdict.PASS, "")


@pytest.mark.parametrize("transport", Transport)
def test_a_model_with_half_precision_breaks_no_rule(server: Server, transport: Transport) -> None:
    session = server.session(transport, "half")
    failed = [
        (c.id, o.reason) for c in CASES if transport in c.transports and (o := check(c, session)).verdict == "FAIL"
    ]
    assert failed == []


@pytest.mark.parametrize("case", pairs(Transport.REST))
def test_a_server_that_breaks_a_rule_of_rest_is_caught(server: Server, case: Case) -> None:
    outcome = check(case, server.session(Transport.REST, mutant=case.id))
    assert outcome.verdict is Verdict.FAIL, outcome.reason


@pytest.mark.parametrize("case", [p for p in pairs(Transport.GRPC) if p.id not in OF_THE_LIBRARY])
def test_a_server_that_breaks_a_rule_of_grpc_is_caught(server: Server, case: Case) -> None:
    outcome = check(case, server.session(Transport.GRPC, mutant=case.id))
    assert outcome.verdict is Verdict.FAIL, outcome.reason


def test_a_registered_model_breaks_no_rule(
    make_artifact: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plane = Dataplane("digits")
    plane.flip(Lineup("1", {"1": load_version("1", open_artifact(str(make_artifact(1))))}))
    with serving([plane]) as running:
        arguments = [running.url, "--grpc", running.grpc, "--model", "digits", "--strict"]
        assert main([*arguments, "--junit", str(tmp_path / "junit.xml")]) == 0
        table = capsys.readouterr().out
        assert main([*arguments, "--json", "--case", "infer.*"]) == 0
    assert "pass  MUST       infer.answer" in table
    outcomes = json.loads(capsys.readouterr().out)
    assert {outcome["verdict"] for outcome in outcomes} <= {"pass", "skip"}
    assert {outcome["transport"] for outcome in outcomes} == {"REST", "gRPC"}
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "0"


def test_a_broken_must_fails_the_run_and_a_broken_should_only_a_strict_one(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(mutant: str, *more: str) -> int:
        return main([server.url, "--model", "many", "--case", mutant, "--header", f"X-Mutant: {mutant}", *more])

    assert run("infer.id") == 1
    assert "seen: id '42' came back as" in capsys.readouterr().out
    assert run("json.untyped") == 0
    assert run("json.untyped", "--strict") == 1


def test_the_only_model_of_the_index_is_found(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([server.url]) == 2
    assert "the server lists many, half" in capsys.readouterr().err
    with serving([echoing("half", HALF)]) as running:
        assert main([running.url, "--case", "model.*"]) == 0


@pytest.mark.parametrize("arguments", [[], ["--grpc", "x:1"], ["http://127.0.0.1:1"]])
def test_without_server_or_model_nothing_is_checked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "conformance:" in capsys.readouterr().err


def test_a_dead_server_fails_instead_of_hanging() -> None:
    session = Session(RestTarget("http://127.0.0.1:1", {}, 1), "m")
    outcomes = {case.id: check(case, session) for case in CASES if Transport.REST in case.transports}
    assert outcomes["health.live"].verdict is Verdict.FAIL
    assert outcomes["infer.id"].verdict is Verdict.SKIP
    assert not any(outcome.verdict is Verdict.PASS for outcome in outcomes.values())


def test_a_request_of_ones_own_is_used(server: Server, tmp_path: Path) -> None:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 4]]},
        {"name": "n", "datatype": "INT8", "shape": [1, 2], "data": [1, 2]},
        {"name": "w", "datatype": "BYTES", "shape": [1], "data": ["é"]},
        {"name": "f", "datatype": "BOOL", "shape": [1, 1], "data": [True]},
        {"name": "u", "datatype": "UINT64", "shape": [1], "data": [7]},
    ]
    (tmp_path / "input.json").write_text(json.dumps({"inputs": inputs}))
    arguments = [server.url, "--grpc", server.grpc, "--model", "many", "--input", str(tmp_path / "input.json")]
    assert main([*arguments, "--strict"]) == 0


def test_every_rule_is_on_its_page_and_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.strip() in page
    assert len({case.id for case in CASES}) == len(CASES)


def test_made_up_inputs_are_exact_in_every_datatype() -> None:
    from tidepool.conformance.tensors import DATATYPES, Spec, checked, from_raw, make, to_raw

    for datatype in DATATYPES:
        spec = Spec("x", datatype, (-1, 3, -1))
        tensor = make(spec, rows=2, seed=1)
        assert tensor.shape == (2, 3, 4)
        assert list(checked(tensor).values) == list(tensor.values)
        assert from_raw(replace(spec, shape=tensor.shape), to_raw(tensor)).values == tuple(tensor.values) or (
            datatype == "BYTES"
        )
        if datatype not in ("BYTES", "BOOL"):
            assert np.array(tensor.values).max() <= 1
