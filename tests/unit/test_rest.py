"""The HTTP interface of a model, without a server: requests straight into the ASGI application."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tidepool.artifact import open_artifact
from tidepool.serve import codecs
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.limits import Limit
from tidepool.serve.rest import ModelApp

PREFIX = "/v2/models/digits"
Send = Callable[..., httpx.Response]


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


@pytest.fixture
def send(dataplane: Dataplane) -> Iterator[Send]:
    app = ModelApp(dataplane, keys(), max_body_bytes=10_000)

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": PREFIX}, receive, send)

    def request(method: str, path: str, key: str | None = "good", **options: Any) -> httpx.Response:
        async def once() -> httpx.Response:
            transport = httpx.ASGITransport(mounted)
            async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
                headers = {**options.pop("headers", {}), **({"authorization": f"Bearer {key}"} if key else {})}
                return await client.request(method, PREFIX + path, headers=headers, **options)

        return asyncio.run(once())

    return request


def infer_body(**changes: Any) -> bytes:
    tensor = {"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0.0] * 64, **changes}
    return orjson.dumps({"id": "a", "inputs": [tensor]})


def test_the_champion_answers_and_says_so(send: Send) -> None:
    answer = send("POST", "/infer", content=infer_body()).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "2", "a")
    assert {o["name"]: o["datatype"] for o in answer["outputs"]} == {"digit": "INT64", "probabilities": "FP32"}
    assert answer["outputs"][0]["data"] == [2]
    assert len(answer["parameters"]["digest"]) == 64


def test_a_version_in_the_path_answers_itself(send: Send) -> None:
    answer = send("POST", "/versions/1/infer", content=infer_body()).json()
    assert (answer["model_version"], answer["outputs"][0]["data"]) == ("1", [1])


def test_metadata_names_tensors_and_versions(send: Send) -> None:
    metadata = send("GET", "").json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 64]}]
    assert metadata["versions"] == ["1", "2"]
    assert send("GET", "/versions/1").json()["parameters"]["version"] == "1"


def test_the_configuration_is_tritons(send: Send) -> None:
    config = send("GET", "/versions/1/config").json()
    assert (config["name"], config["max_batch_size"]) == ("digits", 0)
    assert config["input"] == [{"name": "image", "data_type": "TYPE_FP32", "dims": [-1, 64]}]


def test_ready_needs_no_key(send: Send) -> None:
    assert send("GET", "/ready", key=None).json() == {"name": "digits", "ready": True}
    assert send("GET", "/versions/9/ready", key=None).status_code == 404


@pytest.mark.parametrize(
    ("key", "status", "words"),
    [(None, 401, "is needed"), ("wrong", 401, "not known"), ("old", 401, "expired"), ("other", 403, "doesn't open")],
)
def test_a_key_that_does_not_open_the_model_is_refused(send: Send, key: str | None, status: int, words: str) -> None:
    response = send("POST", "/infer", key=key, content=infer_body())
    assert response.status_code == status
    assert words in response.json()["error"]


def test_a_key_may_come_as_x_api_key(send: Send) -> None:
    response = send("POST", "/infer", key=None, headers={"x-api-key": "good"}, content=infer_body())
    assert response.status_code == 200


def test_a_key_that_may_read_alone_gets_metadata_and_no_answer(send: Send) -> None:
    assert send("GET", "", key="reader").status_code == 200
    response = send("POST", "/infer", key="reader", content=infer_body())
    assert (response.status_code, "not for this" in response.json()["error"]) == (403, True)


def test_a_key_over_its_rate_is_told_when_to_come_back(send: Send) -> None:
    assert send("POST", "/infer", key="slow", content=infer_body()).status_code == 200
    response = send("POST", "/infer", key="slow", content=infer_body())
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")
    assert "rate limit" in response.json()["error"]
    assert send("GET", "", key="slow").status_code == 200


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "picture"}, "not the model's"),
        ({"datatype": "INT64", "data": [0] * 64}, "wrong datatype"),
        ({"shape": [64]}, "wrong shape"),
        ({"shape": [1, 63], "data": [0.0] * 63}, "wrong shape"),
        ({"shape": [0, 64], "data": []}, "no rows"),
        ({"data": [0.0] * 63}, "don't fit"),
    ],
)
def test_a_tensor_that_is_not_the_models_is_refused(send: Send, changes: dict[str, Any], words: str) -> None:
    response = send("POST", "/infer", content=infer_body(**changes))
    assert response.status_code == 400
    assert words in response.json()["error"]


def test_a_body_over_the_limit_is_refused(send: Send) -> None:
    response = send("POST", "/infer", content=b" " * 10_001)
    assert response.status_code == 413
    assert "10000 bytes" in response.json()["error"]


def test_a_body_over_the_limit_without_a_length_is_refused(send: Send) -> None:
    async def chunks() -> Any:
        for _ in range(11):
            yield b" " * 1000

    assert send("POST", "/infer", content=chunks()).status_code == 413


@pytest.mark.parametrize(("encoding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_packed_body_is_unpacked(send: Send, encoding: str, pack: Callable[[bytes], bytes]) -> None:
    response = send("POST", "/infer", content=pack(infer_body()), headers={"content-encoding": encoding})
    assert response.json()["model_version"] == "2"


@pytest.mark.parametrize(
    ("encoding", "content", "status", "words"),
    [
        ("gzip", gzip.compress(b" " * 1_000_000, mtime=0), 413, "too large"),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4], 400, "truncated"),
        ("gzip", b"no gzip", 400, "can't be unpacked"),
        ("br", b"", 400, "content-encoding"),
    ],
)
def test_a_body_that_does_not_unpack_is_refused(
    send: Send, encoding: str, content: bytes, status: int, words: str
) -> None:
    response = send("POST", "/infer", content=content, headers={"content-encoding": encoding})
    assert response.status_code == status
    assert words in response.json()["error"]


@pytest.mark.parametrize(("method", "path"), [("GET", "/infer"), ("POST", ""), ("DELETE", "/ready")])
def test_a_wrong_method_is_refused(send: Send, method: str, path: str) -> None:
    response = send(method, path)
    assert response.status_code == 405
    assert "error" in response.json()


@pytest.mark.parametrize("path", ["/versions/9/infer", "/nonsense", "/versions"])
def test_an_unknown_path_or_version_is_not_found(send: Send, path: str) -> None:
    response = send("POST", path, content=infer_body())
    assert response.status_code == 404
    assert "error" in response.json()


def test_a_raw_answer_comes_with_its_length(send: Send) -> None:
    document = orjson.loads(infer_body())
    document["parameters"] = {"binary_data_output": True}
    response = send("POST", "/infer", content=orjson.dumps(document))
    length = int(response.headers["inference-header-content-length"])
    heads = orjson.loads(response.content[:length])["outputs"]
    assert sum(head["parameters"]["binary_data_size"] for head in heads) == len(response.content) - length


@pytest.mark.parametrize("length", ["x", "1" * 5000])
def test_a_header_length_that_is_no_number_is_refused(send: Send, length: str) -> None:
    headers = {"inference-header-content-length": length}
    assert send("POST", "/infer", headers=headers, content=infer_body()).status_code == 400


def test_a_model_that_is_not_loaded_is_not_ready() -> None:
    async def once() -> list[dict[str, Any]]:
        sent: list[dict[str, Any]] = []

        async def collect(message: Any) -> None:
            sent.append(message)

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": infer_body()}

        for path, method in (("/infer", "POST"), ("/ready", "GET")):
            scope = {"type": "http", "path": PREFIX + path, "root_path": PREFIX, "method": method, "headers": []}
            await ModelApp(Dataplane("digits"), None, 10_000)(scope, receive, collect)
        return sent

    statuses = [message["status"] for message in asyncio.run(once()) if "status" in message]
    assert statuses == [503, 503]


def test_one_request_too_many_is_refused_before_its_body_is_read(dataplane: Dataplane) -> None:
    app = ModelApp(dataplane, None, max_body_bytes=10_000, max_in_air=1)
    scope = {"type": "http", "method": "POST", "path": f"{PREFIX}/infer", "root_path": PREFIX, "headers": []}
    bodies = 0

    async def both() -> list[dict[str, Any]]:
        heads: list[dict[str, Any]] = []
        go_on = asyncio.Event()

        async def receive() -> dict[str, Any]:
            nonlocal bodies
            bodies += 1
            await go_on.wait()
            return {"type": "http.request", "body": infer_body()}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                heads.append(message)

        first = asyncio.create_task(app({**scope}, receive, send))
        await asyncio.sleep(0)
        await app({**scope}, receive, send)
        go_on.set()
        await first
        await app({**scope}, receive, send)
        return heads

    refused, answered, afterwards = asyncio.run(both())
    assert (refused["status"], answered["status"], afterwards["status"]) == (429, 200, 200)
    assert dict(refused["headers"])[b"retry-after"].isdigit()
    assert bodies == 2


def test_the_limit_holds_for_a_body_without_a_declared_length(send: Send) -> None:
    async def pieces(length: int) -> Any:
        yield b"x" * length

    assert send("POST", "/infer", content=pieces(60_000)).status_code == 413
    assert send("POST", "/infer", content=pieces(9_000)).status_code == 400


def test_statistics_count_what_each_version_did(send: Send) -> None:
    for _ in range(2):
        send("POST", "/versions/1/infer", content=infer_body(shape=[2, 64], data=[0.0] * 128))
    refused = orjson.loads(infer_body())
    refused["parameters"] = {"timeout": -1}
    assert send("POST", "/versions/1/infer", content=orjson.dumps(refused)).status_code == 400
    stats = {entry["version"]: entry for entry in send("GET", "/stats").json()["model_stats"]}
    assert (stats["1"]["inference_count"], stats["2"]["inference_count"]) == (4, 0)
    assert stats["1"]["inference_stats"]["success"]["count"] == 2
    assert stats["1"]["inference_stats"]["success"]["ns"] > 0
    assert stats["1"]["inference_stats"]["fail"]["count"] == 1
    assert [entry["version"] for entry in send("GET", "/versions/2/stats").json()["model_stats"]] == ["2"]
    assert send("GET", "/stats", key=None).status_code == 401


def test_an_answer_that_is_kept_is_the_same_and_costs_no_run(make_artifact: Callable[..., Path]) -> None:
    plane = Dataplane("digits", cache_bytes=1_000_000)
    plane.flip(Lineup("1", {"1": load_version("1", open_artifact(str(make_artifact(1))))}))
    runs = plane.choose(None).batcher.costs.runs
    request = codecs.decode(infer_body())

    async def twice() -> list[Any]:
        return [(await plane.infer(request)).outputs["probabilities"].tolist() for _ in range(2)]

    first, second = asyncio.run(twice())
    assert first == second
    assert plane.choose(None).batcher.costs.runs == runs + 1
    assert plane.statistics()["cache"]["hits"] == 1
    assert plane.statistics()["model_stats"][0]["inference_count"] == 2
