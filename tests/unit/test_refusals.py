"""What clients are told of requests that aren't answered: their own mistake, and what to do about it."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tidepool.artifact import open_artifact
from tidepool.errors import InvalidRequest
from tidepool.serve import grpc
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.rest import ModelApp

TEXTS = {"datatype": "BYTES", "shape": [2], "data": ["a", "b"]}


@pytest.fixture
def dataplane(make_artifact: Callable[..., Path]) -> Dataplane:
    plane = Dataplane("digits")
    plane.flip(Lineup("1", {"1": load_version("1", open_artifact(str(make_artifact(1))))}))
    return plane


def infer_body(**changes: Any) -> bytes:
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64, **changes}
    return orjson.dumps({"inputs": [tensor]})


def refusal(
    dataplane: Dataplane, body: bytes, path: str = "/infer", keyring: Keyring | None = None, **headers: str
) -> tuple[int, str]:
    """Status and message of the answer."""
    names = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": names}
    sent: list[Any] = []
    parts = iter([body])

    async def receive() -> dict[str, Any]:
        if (part := next(parts, None)) is None:
            await asyncio.Event().wait()  # the client stays
        return {"type": "http.request", "body": part}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(ModelApp(dataplane, keyring, max_body_bytes=10_000)(scope, receive, send))
    return sent[0]["status"], orjson.loads(sent[1]["body"])["error"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (TEXTS, "input image has a wrong datatype. Seen: BYTES. Allowed: FP32."),
        ({**TEXTS, "data": ["a"]}, "input image has a wrong datatype. Seen: BYTES. Allowed: FP32."),
        ({"datatype": "FLOAT"}, "input image has a wrong datatype. Seen: FLOAT. Allowed: FP32."),
        ({"name": "x", "data": [0]}, "the inputs are not the model's. Seen: x. Allowed: image FP32 [-1, 64]."),
        ({"shape": [1, 3], "data": [0]}, "input image has a wrong shape. Seen: [1, 3]. Allowed: [-1, 64],"),
        ({"shape": "all"}, "input image has a wrong shape. Seen: all. Allowed: [-1, 64],"),
        ({"data": [0]}, "input image: data and shape don't fit. Seen: data of shape [1]. Allowed: [1, 64],"),
        ({"name": 3}, "an input has no name"),
    ],
)
@pytest.mark.parametrize("path", ["/infer", "/explain", "/versions/1/infer"])
def test_of_several_mistakes_the_one_against_the_signature_is_told(
    dataplane: Dataplane, path: str, changes: dict[str, Any], said: str
) -> None:
    status, message = refusal(dataplane, infer_body(**changes), path)
    assert status == 400
    assert message.startswith(said)


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ({"name": "x"}, r"^the inputs are not the model's\. Seen: x\. Allowed: image FP32 \[-1, 64\]\."),
        ({"datatype": "FP64"}, r"^input image has a wrong datatype\. Seen: FP64\. Allowed: FP32\."),
        ({"shape": [1, 3]}, r"^input image has a wrong shape\. Seen: \[1, 3\]\. Allowed: \[-1, 64\],"),
        ({}, r"^input image: data and shape don't fit\."),
    ],
)
def test_grpc_tells_them_in_the_same_order(dataplane: Dataplane, tensor: dict[str, Any], said: str) -> None:
    message = pb.ModelInferRequest(model_name="digits")
    message.inputs.add(**{"name": "image", "datatype": "FP32", "shape": [1, 64], **tensor})
    with pytest.raises(InvalidRequest, match=said):
        asyncio.run(grpc.infer(dataplane, message, ""))


def test_of_a_version_that_is_not_there_no_signature_is_told(dataplane: Dataplane) -> None:
    assert refusal(dataplane, infer_body(data=[0]), "/versions/9/infer")[1].startswith("input image: data and shape")
    assert refusal(Dataplane("digits"), infer_body(data=[0]))[1].startswith("input image: data and shape")


@pytest.mark.parametrize("length", [20, 500])
def test_a_header_length_that_is_not_the_jsons_is_named(dataplane: Dataplane, length: int) -> None:
    body = infer_body() + b"\0" * 500
    status, message = refusal(dataplane, body, inference_header_content_length=str(length))
    assert status == 400
    assert f"Seen: Inference-Header-Content-Length {length}, of {len(body)} bytes: " in message


def test_a_packed_body_without_its_header_is_told_of_it(dataplane: Dataplane) -> None:
    status, message = refusal(dataplane, gzip.compress(infer_body()))
    assert (status, "Content-Encoding: gzip" in message) == (400, True)


@pytest.mark.parametrize("path", ["/infer", "/explain"])
@pytest.mark.parametrize("member", ["shape", "data", "datatype", "name", "parameters"])
@pytest.mark.parametrize("depth", [10, 900, 2000])
def test_lists_in_one_another_are_refused_however_many(
    dataplane: Dataplane, path: str, member: str, depth: int
) -> None:
    nested = orjson.Fragment(b"[" * depth + b"1" + b"]" * depth)
    status, message = refusal(dataplane, infer_body(**{member: nested}), path)
    assert (status, bool(message)) == (400, True)


@pytest.mark.parametrize("path", ["/infer", "/explain", "/generate"])
@pytest.mark.parametrize("depth", [9, 1000])
def test_parameters_in_one_another_are_refused(dataplane: Dataplane, path: str, depth: int) -> None:
    nested = orjson.Fragment(b'{"a": [' * (depth // 2) + b"[1]" + b"]}" * (depth // 2))
    document = {"text_input": "x", **orjson.loads(infer_body()), "parameters": {"key": nested}}
    status, message = refusal(dataplane, orjson.dumps(document), path)
    assert (status, message) == (400, "parameter key is nested too deeply. Allowed: 8 in one another.")


def keys() -> Keyring:
    return Keyring([Key("good", "good", digest("good"), ("*",), 0.0, None)])


@pytest.mark.parametrize("sent", ["Basic Z29vZDpnb29k", "Token good", "Digest username=a.b.c"])
def test_a_key_sent_in_another_way_than_bearer_is_told_so(dataplane: Dataplane, sent: str) -> None:
    status, message = refusal(dataplane, infer_body(), keyring=keys(), authorization=sent)
    assert status == 401
    scheme = sent.split()[0]
    assert f"Seen: {scheme}. Allowed: Bearer. Remedy: send it as 'Authorization: Bearer <key>'." in message


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer ", "Bearer wrong", "Bearer tp_1 2"])
def test_whoever_has_no_good_key_is_told_how_to_make_one(dataplane: Dataplane, sent: str) -> None:
    status, message = refusal(dataplane, infer_body(), keyring=keys(), authorization=sent)
    assert status == 401
    assert message.endswith("`tidepool keys create NAME` makes one.")
