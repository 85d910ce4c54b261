"""The gRPC interface of a model: a real server and real calls, in one process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest

from tidepool import errors
from tidepool.artifact import open_artifact
from tidepool.serve import protobuf, triton
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.grpc import (
    _ANSWERING,
    CALLS,
    CODES,
    GRACE_S,
    SERVICE,
    Servicer,
    add_to_server,
    answer_with,
    code_of,
)
from tidepool.serve.limits import Limit
from tidepool.serve.protocol import InferRequest, InferResponse
from tidepool.serve.reception import Reception

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


def keys() -> Keyring:
    def key(id_: str, models: tuple[str, ...] = ("*",), expires: float | None = None, **more: Any) -> Key:
        return Key(id_, id_, digest(id_), models, 0.0, expires, **more)

    some = [key("good"), key("other", ("iris",)), key("old", expires=5.0)]
    some += [key("reader", verbs=("read",)), key("slow", limit=Limit(per_second=0.5))]
    return Keyring(some, clock=lambda: 10.0)


@pytest.fixture
def dataplane(make_artifact: Callable[..., Path]) -> Dataplane:
    versions = {str(n): load_version(str(n), open_artifact(str(make_artifact(n)))) for n in (1, 2)}
    plane = Dataplane("digits")
    plane.flip(Lineup("2", versions))
    return plane


def ask(dataplane: Dataplane, question: Callable[[Client], Awaitable[Any]]) -> Any:
    """The answer of a server for one model."""

    async def once() -> Any:
        server = grpc.aio.server()
        add_to_server(Servicer(dataplane, keys(), LIMIT), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                return await question(Client(channel))
        finally:
            await server.stop(None)

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


def test_what_tritons_clients_ask_for_is_told(dataplane: Dataplane) -> None:
    async def questions(client: Client) -> Any:
        await client.infer()
        return (
            await client.ModelConfig(pb.ModelConfigRequest(name="digits"), metadata=KEY),
            await client.ModelStatistics(pb.ModelStatisticsRequest(name="digits"), metadata=KEY),
            await client.RepositoryIndex(pb.RepositoryIndexRequest()),
        )

    config, statistics, index = ask(dataplane, questions)
    (image,) = config.config.input
    assert (image.name, image.data_type, list(image.dims)) == ("image", pb.DataType.TYPE_FP32, [-1, 64])
    counts = {entry.version: entry.inference_stats.success.count for entry in statistics.model_stats}
    assert counts == {"1": 0, "2": 1}
    assert [(entry.name, entry.version, entry.state) for entry in index.models] == [
        ("digits", "1", "READY"),
        ("digits", "2", "READY"),
    ]


@pytest.mark.parametrize("call", ["ModelConfig", "ModelStatistics"])
def test_what_is_told_of_a_model_needs_a_key(dataplane: Dataplane, call: str) -> None:
    request = CALLS[call][0](name="digits")
    assert refusal(dataplane, lambda client: getattr(client, call)(request))[0] == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("ready", [True, False])
def test_the_gateway_is_ready_when_all_that_it_knows_is(ready: bool) -> None:
    reception = Reception("nowhere", list, lambda: ready)
    assert asyncio.run(reception.ServerReady(pb.ServerReadyRequest(), None)).ready is ready


def test_the_gateway_lists_the_versions_of_all_models() -> None:
    entries = [*triton.index("digits", ["1"]), *triton.index("iris", [], triton.UNAVAILABLE, "no room")]
    reception = Reception("nowhere", lambda: entries, lambda: True)
    for ready, names in ((False, ["digits", "iris"]), (True, ["digits"])):
        answer = asyncio.run(reception.RepositoryIndex(pb.RepositoryIndexRequest(ready=ready), None))
        assert [entry.name for entry in answer.models] == names


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


def test_a_key_that_may_read_alone_gets_metadata_and_no_answer(dataplane: Dataplane) -> None:
    reader, request = (("x-api-key", "reader"),), pb.ModelMetadataRequest(name="digits")
    assert ask(dataplane, lambda client: client.ModelMetadata(request, metadata=reader)).name == "digits"
    assert refusal(dataplane, lambda client: client.infer(metadata=reader))[0] == grpc.StatusCode.PERMISSION_DENIED


def test_a_key_over_its_rate_is_told_when_to_come_back(dataplane: Dataplane) -> None:
    async def twice(client: Client) -> Any:
        await client.infer(metadata=(("x-api-key", "slow"),))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.infer(metadata=(("x-api-key", "slow"),))
        return refused.value

    refused = ask(dataplane, twice)
    assert (refused.code(), "rate limit" in refused.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert dict(refused.trailing_metadata())["retry-after"] == "2"


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"model_name": "iris"}, "NOT_FOUND", "no such model"),
        ({"model_version": "9"}, "NOT_FOUND", "not served"),
        ({"inputs": [pb.ModelInferRequest.InferInputTensor()]}, "INVALID_ARGUMENT", "not the model's"),
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


def test_a_replicas_server_waits_for_a_connection_that_stays_no_longer_than_a_moment(dataplane: Dataplane) -> None:
    waited: list[float | None] = []

    class Server:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *_: None

        async def stop(self, grace: float | None = None) -> None:
            waited.append(grace)

    before = list(_ANSWERING)
    answer_with(SimpleNamespace(), Servicer(dataplane, None, LIMIT))
    try:
        server = Server()
        add_to_server(None, server)
    finally:
        _ANSWERING[:] = before
    for grace in (3.0, 0.1, None):
        asyncio.run(server.stop(grace))
    assert waited == [GRACE_S, 0.1, None]


class Failing(Dataplane):
    """A model with a bug."""

    async def infer(self, request: InferRequest, version: str | None = None, key: str = "") -> InferResponse:
        raise ZeroDivisionError("secret")


def test_a_model_that_fails_says_so_without_its_insides() -> None:
    code, details = refusal(Failing("digits"), lambda client: client.infer())
    assert (code, details) == (grpc.StatusCode.INTERNAL, "the model failed: ZeroDivisionError")
