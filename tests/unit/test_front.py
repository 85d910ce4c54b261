"""The front for all models: real servers and calls, in one process, a stand-in for Serve's port behind it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import InvalidRequest
from tidepool.recipe import Signature, TensorSpec
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.dataplane import Dataplane
from tidepool.serve.front import Front, first_string, model_of
from tidepool.serve.grpc import CALLS, SERVICE, Servicer, add_to_server
from tidepool.serve.protocol import InferRequest, InferResponse

KEY = (("authorization", "Bearer good"),)
LIMIT = 20_000


class Client:
    """The calls of the protocol, each by its name."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def __getattr__(self, name: str) -> Any:
        asked, given = CALLS[name]
        return self.channel.unary_unary(
            f"/{SERVICE}/{name}", request_serializer=asked.SerializeToString, response_deserializer=given.FromString
        )


class Answering(Dataplane):
    """A model that answers every request with its own name."""

    async def infer(self, request: InferRequest, version: str | None = None) -> InferResponse:
        signature = Signature((), (TensorSpec("name", "BYTES", (1,)),))
        name = np.array([self.model.encode()], np.object_)
        return InferResponse(self.model, "1", {"name": name}, signature, id=request.id)


class Waiting(Dataplane):
    """A model that never answers, and notes when it was asked and let go."""

    def __init__(self) -> None:
        super().__init__("digits")
        self.asked, self.let_go = asyncio.Event(), asyncio.Event()

    async def infer(self, request: InferRequest, version: str | None = None) -> InferResponse:
        self.asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.let_go.set()
        raise AssertionError


@contextlib.asynccontextmanager
async def fronted(*planes: Dataplane, limit: int = LIMIT) -> AsyncIterator[Client]:
    """A client of a front before a stand-in for Serve's port: it routes by the `application` key alone."""
    keys = Keyring([Key("1", "k", digest("good"), ("*",), 0.0, None)])
    servicers = {f"app-{plane.model}": Servicer(plane, keys, LIMIT) for plane in planes}

    class Router:
        def __getattr__(self, name: str) -> Any:
            async def call(request: Any, context: Any) -> Any:
                application = dict(context.invocation_metadata())["application"]
                if application not in servicers:
                    await context.abort(grpc.StatusCode.NOT_FOUND, f"Application '{application}' not found. Ping /x")
                return await getattr(servicers[application], name)(request, context)

            return call

    async def healthz(request: bytes, context: Any) -> bytes:
        return b""

    server = grpc.aio.server()
    add_to_server(Router(), server)
    handlers = {"Healthz": grpc.unary_unary_rpc_method_handler(healthz)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ray.serve.RayServeAPIService", handlers),))
    upstream = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    front = Front(f"127.0.0.1:{upstream}", limit, application="app-{}".format)
    port = await front.start(host="127.0.0.1")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Client(channel)
    finally:
        await front.stop(0)
        await server.stop(None)


def test_the_front_finds_the_application_by_the_models_name() -> None:
    async def once() -> None:
        async with fronted(Answering("digits"), Answering("iris")) as client:
            for model in ("digits", "iris"):
                request = pb.ModelInferRequest(model_name=model, id="a")
                answer = await client.ModelInfer(request, metadata=(*KEY, ("application", "app-iris")))
                assert (answer.id, list(answer.outputs[0].contents.bytes_contents)) == ("a", [model.encode()])
            assert not (await client.ModelReady(pb.ModelReadyRequest(name="iris"))).ready

    asyncio.run(once())


@pytest.mark.parametrize(
    ("model", "metadata", "code", "words"),
    [
        ("nonsense", KEY, "NOT_FOUND", "no such model is served. Seen: nonsense."),
        ("", KEY, "INVALID_ARGUMENT", "names no model"),
        ("digits", (), "UNAUTHENTICATED", "API key"),
        ("iris", KEY, "UNAVAILABLE", "still being loaded"),
    ],
)
def test_the_front_passes_refusals_on(model: str, metadata: Any, code: str, words: str) -> None:
    async def once() -> None:
        async with fronted(Answering("digits"), Dataplane("iris")) as client:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.ModelInfer(pb.ModelInferRequest(model_name=model), metadata=metadata)
            assert (refused.value.code().name, words in refused.value.details()) == (code, True)

    asyncio.run(once())


def test_a_message_over_the_fronts_limit_is_refused() -> None:
    async def once() -> None:
        async with fronted(Answering("digits"), limit=1000) as client:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.ModelInfer(pb.ModelInferRequest(model_name="digits", id="x" * 1000), metadata=KEY)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await client.ModelInfer(pb.ModelInferRequest(model_name="digits"), metadata=KEY)).outputs

    asyncio.run(once())


def test_the_front_answers_what_is_about_no_model() -> None:
    async def once() -> None:
        async with fronted(Answering("digits")) as client:
            assert (await client.ServerLive(pb.ServerLiveRequest())).live
            assert (await client.ServerReady(pb.ServerReadyRequest())).ready
            assert (await client.ServerMetadata(pb.ServerMetadataRequest())).name == "tidepool"
            reflected = client.channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE)]))
            async for answer in reflected:
                assert b"GRPCInferenceService" in answer.file_descriptor_response.file_descriptor_proto[0]

    asyncio.run(once())


def test_the_front_tells_its_health() -> None:
    serving_, unknown = b"\x08\x01", b"\x08\x03"

    async def once() -> None:
        async with fronted(Answering("digits")) as client:
            check = client.channel.unary_unary("/grpc.health.v1.Health/Check")
            watch = client.channel.unary_stream("/grpc.health.v1.Health/Watch")
            assert await check(b"") == serving_
            assert await check(b"\x0a" + bytes([len(SERVICE)]) + SERVICE.encode()) == serving_
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await check(b"\x0a\x01x")
            assert refused.value.code() == grpc.StatusCode.NOT_FOUND
            for request, status in ((b"", serving_), (b"\x0a\x01x", unknown)):
                call = watch(request)
                assert await call.read() == status
                call.cancel()

    asyncio.run(once())


def test_a_front_without_an_upstream_is_not_ready() -> None:
    async def once() -> None:
        front = Front("127.0.0.1:1", LIMIT)
        port = await front.start(host="127.0.0.1")
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = Client(channel)
            assert not (await client.ServerReady(pb.ServerReadyRequest())).ready
            assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x02"
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.ModelInfer(pb.ModelInferRequest(model_name="digits"))
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        await front.stop(0)

    asyncio.run(once())


def test_two_fronts_cannot_have_one_port() -> None:
    async def once() -> None:
        first, second = Front("127.0.0.1:1", LIMIT), Front("127.0.0.1:1", LIMIT)
        port = await first.start(host="127.0.0.1")
        with pytest.raises(RuntimeError):
            await second.start(port, host="127.0.0.1")
        await first.stop(0)

    asyncio.run(once())


@pytest.mark.parametrize("end", ["cancelled", "past its deadline"])
def test_a_call_that_is_given_up_stops_waiting_in_the_replica(end: str) -> None:
    async def once() -> None:
        plane = Waiting()
        async with fronted(plane) as client:
            message = pb.ModelInferRequest(model_name="digits")
            call = client.ModelInfer(message, metadata=KEY, timeout=0.3 if end == "past its deadline" else None)
            await asyncio.wait_for(plane.asked.wait(), 10)
            if end == "cancelled":
                call.cancel()
            await asyncio.wait_for(plane.let_go.wait(), 10)
            assert (await call.code()).name == ("CANCELLED" if end == "cancelled" else "DEADLINE_EXCEEDED")

    asyncio.run(once())


@given(st.binary(max_size=60))
def test_any_bytes_name_a_model_or_are_refused(message: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert model_of(message)


@given(st.text(min_size=1, max_size=300), st.binary(max_size=300))
def test_a_models_name_is_found_wherever_its_field_is(name: str, raw: bytes) -> None:
    first = pb.ModelInferRequest(model_name=name).SerializeToString()
    rest = pb.ModelInferRequest(id="i", raw_input_contents=[raw], inputs=[{"name": "x", "shape": [2**40, 1]}])
    assert model_of(first + rest.SerializeToString()) == name
    assert model_of(rest.SerializeToString() + first) == name


@pytest.mark.parametrize(
    "message", [b"", b"\x0a", b"\x0a\x05abc", b"\x0a\x01\xff", b"\xff" * 1_000_000, b"\x0b", b"\x10\x01" * 500_000]
)
def test_bytes_without_a_proper_first_field_name_nothing(message: bytes) -> None:
    assert first_string(message) is None


def test_fields_of_every_wire_type_are_passed_over() -> None:
    message = b"\x10\x96\x01" + b"\x19" + bytes(8) + b"\x25" + bytes(4) + b"\x32\x02ab" + b"\x0a\x01m"
    assert first_string(message) == "m"
