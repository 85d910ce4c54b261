"""What is sensitive is in nothing that is written: every file of the home and every line of every log is searched."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.dataset as ds
import pytest

from tidepool.errors import RecipeError, SpecError
from tidepool.recipe import Signature, TensorSpec
from tidepool.serve import grpc, protobuf
from tidepool.serve.batching import Batcher
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion
from tidepool.serve.protocol import Tensors
from tidepool.serve.rest import ModelApp
from tidepool.serve.splits import Share
from tidepool.serve.stacking import Stacking
from tidepool.serve.traffic import TrafficControl
from tidepool.settings import Settings
from tidepool.spec import ServeSpec

SECRET = "tell-nobody-4711"
TEXT, PUBLIC = TensorSpec("note", "BYTES", (-1,)), TensorSpec("public", "BYTES", (-1,))


def echo(inputs: Tensors) -> Tensors:
    """A model that gives back what it gets, and quotes it in the message of its failure."""
    if any(b"fail" in item for item in inputs["public"]):
        raise ValueError(f"can't make sense of {inputs['note'][0].decode()}")
    return {"public": inputs["public"], "note": inputs["note"]}


def loaded(version: str, rule: str) -> LoadedVersion:
    signature = Signature((TEXT, PUBLIC), (PUBLIC, TEXT), {"note": rule})
    batcher = Batcher(echo, Stacking(signature.inputs), 0.1)
    return LoadedVersion(version, f"digest-{version}", signature, echo, batcher)


@pytest.fixture
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.DEBUG):
        yield


async def ask_over_rest(dataplane: Dataplane, public: str, version: str = "") -> int:
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await ModelApp(dataplane, None, 10_000)({**scope, "root_path": "/v2/models/m"}, receive, send)

    tensors = {"note": SECRET, "public": public}
    inputs = [{"name": n, "datatype": "BYTES", "shape": [1], "data": [text]} for n, text in tensors.items()]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="http://t") as client:
        response = await client.post(f"/v2/models/m{version}/infer", json={"id": "r1", "inputs": inputs})
        return response.status_code


async def ask_over_grpc(dataplane: Dataplane, public: str) -> str:
    class Call:
        code: Any = None

        def invocation_metadata(self) -> tuple[Any, ...]:
            return ()

        def set_code(self, code: Any) -> None:
            self.code = code

        def set_details(self, details: str) -> None:
            assert SECRET not in details

    tensors = {"note": np.array([SECRET.encode()], object), "public": np.array([public.encode()], object)}
    message = protobuf.encode_request(tensors, {"note": "BYTES", "public": "BYTES"}, model="m", raw=True)
    call = Call()
    await grpc.Servicer(dataplane, None, 10_000).ModelInfer(message, call)
    return str(call.code)


@pytest.mark.usefixtures("everything_is_logged")
@pytest.mark.parametrize("rule", ["drop", "hash", r"pattern:[\w-]+"])
def test_the_secret_is_nowhere(
    home: Path, rule: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = ServeSpec.model_validate({"request_log": {"share": 1.0}, "canary": {"decide": True}})
    control = TrafficControl("m", spec, Settings(mask_key="a key of the installation"))
    versions = {version: loaded(version, rule) for version in ("1", "2")}
    dataplane = Dataplane("m")
    shares = {"canary": Share("2", 50.0, 1.0)}
    dataplane.flip(Lineup("1", versions, control.plan("1", shares, versions)))

    async def traffic() -> None:
        for number in range(10):
            assert await ask_over_rest(dataplane, f"fine {number}") == 200
            assert await ask_over_rest(dataplane, "fail") == 500
            assert await ask_over_grpc(dataplane, "fine") == "None"
            assert await ask_over_grpc(dataplane, "fail") == "StatusCode.INTERNAL"
        assert await ask_over_rest(dataplane, "fine", "/versions/2") == 200

    asyncio.run(traffic())
    control.close()
    files = [file for file in home.rglob("*") if file.is_file()]
    tables = [ds.dataset(file).to_table().to_pylist() for file in files]
    assert sum(map(len, tables)) == 41
    heard = capfd.readouterr()
    everything = f"{caplog.text} {heard.out} {heard.err} {json.dumps(dataplane.statistics())}"
    everything += "".join(f"{file} {file.read_bytes()!r} {rows}" for file, rows in zip(files, tables, strict=True))
    assert "fine 7" in everything, "or a search would find nothing at all"
    assert "ValueError <- echo" in everything
    assert SECRET not in everything


def test_a_hash_without_a_key_is_refused_before_anything_is_served() -> None:
    signature = Signature((TEXT,), (), {"note": "hash"})
    logs = TrafficControl("m", ServeSpec.model_validate({"request_log": {"share": 0.1}}), Settings())
    with pytest.raises(SpecError, match="TIDEPOOL_MASK_KEY"):
        logs.mask(signature)
    logs.close()
    TrafficControl("m", ServeSpec(), Settings()).mask(signature)


def test_a_rule_for_no_tensor_or_of_no_kind_is_refused() -> None:
    with pytest.raises(RecipeError, match="notes"):
        Signature((TEXT,), (), {"notes": "drop"})
    with pytest.raises(RecipeError, match="drop, hash, pattern"):
        Signature((TEXT,), (), {"note": "hide"})


def test_what_is_sensitive_travels_with_the_artifact_and_not_to_clients() -> None:
    signature = loaded("1", "drop").signature
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature
    assert "sensitive" not in Signature((TEXT,), ()).to_json()
    dataplane = Dataplane("m")
    dataplane.flip(Lineup("1", {"1": loaded("1", "drop")}))
    assert "sensitive" not in dataplane.metadata()
