"""The gRPC interface of a model and the front for all models: real servers and calls, in one process."""
# ruff: noqa: ARG001, ARG002

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import given
from hypothesis import strategies as st

from tidepool import errors
from tidepool.artifact import open_artifact
from tidepool.errors import InvalidRequest
from tidepool.serve import protobuf
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.front import Front, first_string, model_of
from tidepool.serve.grpc import CALLS, CODES, SERVICE, Servicer, add_to_server, code_of
from tidepool.serve.protocol import InferRequest, InferResponse

IMAGE = {"image": np.zeros((1, 64), np.float32)}
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

    async def infer(self, *, raw: bool = False, metadata: Any = KEY, **fields: Any) -> pb.ModelInferResponse:
        message = protobuf.encode_request(IMAGE, {"image": "FP32"}, model="digits", raw=raw)
        message.MergeFrom(pb.ModelInferRequest(**fields))
        return await self.ModelInfer(message, metadata=metadata)


@contextlib.asynccontextmanager
async def serving(register: Callable[[Any], None]) -> AsyncIterator[Client]:
    """A client of a server that has what `register` registers."""
    server = grpc.aio.server()
    register(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            client = Client(channel)
            client.address = f"127.0.0.1:{port}"
            yield client
    finally:
        await server.stop(None)


def keys() -> Keyring:
    def key(id_: str, models: tuple[str, ...], expires: float | None = None) -> Key:
        return Key(id_, id_, digest(id_), models, 0.0, expires)

    return Keyring([key("good", ("*",)), key("other", ("iris",)), key("old", ("*",), 5.0)], clock=lambda: 10.0)


@pytest.fixture
def dataplane(make_artifact: Callable[..., Path]) -> Dataplane:
    versions = {str(n): load_version(str(n), open_artifact(str(make_artifact(n)))) for n in (1, 2)}
    plane = Dataplane("digits")
    plane.flip(Lineup("2", versions))
    return plane


def ask(dataplane: Dataplane, question: Callable[[Client], Awaitable[Any]]) -> Any:
    """The answer of a server for one model."""

    async def once() -> Any:
        async with serving(lambda server: add_to_server(Servicer(dataplane, keys(), LIMIT), server)) as client:
            return await question(client)

    return asyncio.run(once())


def refusal(dataplane: Dataplane, question: Callable[[Client], Awaitable[Any]]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        ask(dataplane, question)
    return refused.value.code(), refused.value.details()


def test_the_champion_answers_and_says_so(dataplane: Dataplane) -> None:
    answer = ask(dataplane, lambda client: client.infer(id="a"))
    assert (answer.model_name, answer.model_version, answer.id) == ("digits", "2", "a")
    assert [(t.name, t.datatype, list(t.shape)) for t in answer.outputs] == [
        ("digit", "INT64", [1]),
        ("probabilities", "FP32", [1, 10]),
    ]
    assert list(answer.outputs[0].contents.int64_contents) == [2]
    assert len(answer.parameters["digest"].string_param) == 64


def test_raw_inputs_get_raw_outputs(dataplane: Dataplane) -> None:
    answer = ask(dataplane, lambda client: client.infer(raw=True))
    assert [len(raw) for raw in answer.raw_output_contents] == [8, 40]
    assert np.frombuffer(answer.raw_output_contents[0], "<i8").tolist() == [2]


def test_a_version_and_an_output_can_be_asked_for(dataplane: Dataplane) -> None:
    wanted = [pb.ModelInferRequest.InferRequestedOutputTensor(name="digit")]
    answer = ask(dataplane, lambda client: client.infer(model_version="1", outputs=wanted))
    assert (answer.model_version, [t.name for t in answer.outputs]) == ("1", ["digit"])
    assert list(answer.outputs[0].contents.int64_contents) == [1]


def test_health_and_metadata_are_told(dataplane: Dataplane) -> None:
    async def questions(client: Client) -> Any:
        return (
            await client.ServerLive(pb.ServerLiveRequest()),
            await client.ServerReady(pb.ServerReadyRequest()),
            await client.ServerMetadata(pb.ServerMetadataRequest()),
            await client.ModelMetadata(pb.ModelMetadataRequest(name="digits"), metadata=KEY),
        )

    live, ready, server, model = ask(dataplane, questions)
    assert live.live
    assert ready.ready
    assert server.name == "tidepool"
    assert (list(model.versions), model.inputs[0].name, list(model.inputs[0].shape)) == (["1", "2"], "image", [-1, 64])


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("digits", "", True), ("digits", "1", True), ("digits", "9", False), ("iris", "", False)],
)
def test_a_model_is_ready_if_it_would_answer(dataplane: Dataplane, name: str, version: str, ready: bool) -> None:
    request = pb.ModelReadyRequest(name=name, version=version)
    assert ask(dataplane, lambda client: client.ModelReady(request)).ready is ready


def test_a_model_that_is_not_loaded_is_unavailable() -> None:
    assert not ask(Dataplane("digits"), lambda client: client.ServerReady(pb.ServerReadyRequest())).ready
    assert refusal(Dataplane("digits"), lambda client: client.infer())[0] == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("metadata", "code", "words"),
    [
        ((), "UNAUTHENTICATED", "is needed"),
        ((("x-api-key", "wrong"),), "UNAUTHENTICATED", "not known"),
        ((("x-api-key", "old"),), "UNAUTHENTICATED", "expired"),
        ((("authorization", "Bearer other"),), "PERMISSION_DENIED", "doesn't open"),
    ],
)
def test_a_key_that_does_not_open_the_model_is_refused(
    dataplane: Dataplane, metadata: Any, code: str, words: str
) -> None:
    seen, details = refusal(dataplane, lambda client: client.infer(metadata=metadata))
    assert (seen.name, words in details) == (code, True)
    request = pb.ModelMetadataRequest(name="digits")
    assert refusal(dataplane, lambda client: client.ModelMetadata(request, metadata=metadata))[0] == seen


def test_a_key_may_come_as_x_api_key(dataplane: Dataplane) -> None:
    assert ask(dataplane, lambda client: client.infer(metadata=(("x-api-key", "good"),))).model_version == "2"


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model_name": "iris"}, "NOT_FOUND", "no such model"),
        ({"model_version": "9"}, "NOT_FOUND", "not served"),
        ({"inputs": [pb.ModelInferRequest.InferInputTensor()]}, "INVALID_ARGUMENT", "unknown datatype"),
        ({"raw_input_contents": [b""]}, "INVALID_ARGUMENT", "one or the other"),
        ({"outputs": [{"name": "nonsense"}]}, "INVALID_ARGUMENT", "no such output"),
        ({"raw_input_contents": [bytes(LIMIT)]}, "RESOURCE_EXHAUSTED", f"{LIMIT} bytes"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(
    dataplane: Dataplane, fields: dict[str, Any], code: str, words: str
) -> None:
    seen, details = refusal(dataplane, lambda client: client.infer(**fields))
    assert (seen.name, words in details) == (code, True)


def test_a_long_message_is_cut_so_that_the_client_accepts_it(dataplane: Dataplane) -> None:
    code, details = refusal(dataplane, lambda client: client.infer(model_version="é" * 5000))
    assert code == grpc.StatusCode.NOT_FOUND
    assert 100 < len(details) < 1000


def test_every_request_error_has_a_code_of_its_own_kind() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RequestError)]
    codes = {kind: code_of(kind("x")) for kind in kinds if kind is not errors.RequestError}
    assert grpc.StatusCode.INTERNAL not in codes.values()
    assert code_of(errors.DataError("x")) == grpc.StatusCode.INTERNAL
    assert CODES[errors.Overloaded] == grpc.StatusCode.RESOURCE_EXHAUSTED


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


class Failing(Dataplane):
    """A model with a bug."""

    async def infer(self, request: InferRequest, version: str | None = None) -> InferResponse:
        raise ZeroDivisionError("secret")


def test_a_model_that_fails_says_so_without_its_insides() -> None:
    code, details = refusal(Failing("digits"), lambda client: client.infer())
    assert (code, details) == (grpc.StatusCode.INTERNAL, "the model failed: ZeroDivisionError")


@contextlib.asynccontextmanager
async def fronted(*planes: Dataplane, limit: int = LIMIT) -> AsyncIterator[Client]:
    """A client of a front before a stand-in for Serve's port: it routes by the `application` key alone."""
    servicers = {f"app-{plane.model}": Servicer(plane, keys(), LIMIT) for plane in planes}

    class Router:
        def __getattr__(self, name: str) -> Any:
            async def call(request: Any, context: Any) -> Any:
                application = dict(context.invocation_metadata())["application"]
                if application not in servicers:
                    await context.abort(grpc.StatusCode.NOT_FOUND, f"Application '{application}' not found. Ping /x")
                return await getattr(servicers[application], name)(request, context)

            return call

    def register(server: Any) -> None:
        async def healthz(request: bytes, context: Any) -> bytes:
            return b""

        add_to_server(Router(), server)
        handlers = {"Healthz": grpc.unary_unary_rpc_method_handler(healthz)}
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("ray.serve.RayServeAPIService", handlers),)
        )

    async with serving(register) as upstream:
        front = Front(upstream.address, limit, application="app-{}".format)
        port = await front.start(host="127.0.0.1")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                yield Client(channel)
        finally:
            await front.stop(0)


def test_the_front_finds_the_application_by_the_models_name(dataplane: Dataplane) -> None:
    async def once() -> None:
        async with fronted(dataplane, Dataplane("iris")) as client:
            answer = await client.infer(raw=True, id="a", metadata=(*KEY, ("application", "app-iris")))
            assert (answer.model_name, answer.id, len(answer.raw_output_contents)) == ("digits", "a", 2)
            assert (await client.ModelMetadata(pb.ModelMetadataRequest(name="digits"), metadata=KEY)).name == "digits"
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
def test_the_front_passes_refusals_on(dataplane: Dataplane, model: str, metadata: Any, code: str, words: str) -> None:
    async def once() -> None:
        async with fronted(dataplane, Dataplane("iris")) as client:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.ModelInfer(pb.ModelInferRequest(model_name=model), metadata=metadata)
            assert (refused.value.code().name, words in refused.value.details()) == (code, True)

    asyncio.run(once())


def test_a_message_over_the_fronts_limit_is_refused(dataplane: Dataplane) -> None:
    async def once() -> None:
        async with fronted(dataplane, limit=1000) as client:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await client.infer(raw_input_contents=[bytes(1000)])
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert (await client.infer()).model_version == "2"

    asyncio.run(once())


def test_the_front_answers_what_is_about_no_model(dataplane: Dataplane) -> None:
    async def once() -> None:
        async with fronted(dataplane) as client:
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


def test_the_front_tells_its_health(dataplane: Dataplane) -> None:
    serving_, unknown = b"\x08\x01", b"\x08\x03"

    async def once() -> None:
        async with fronted(dataplane) as client:
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
                await client.infer()
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
            message = protobuf.encode_request(IMAGE, {"image": "FP32"}, model="digits")
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
