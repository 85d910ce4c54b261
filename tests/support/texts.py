"""A model of letters in a dataplane, and what it is asked for."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import orjson

from letters import Letters, write_letters
from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, new_artifact, open_artifact
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.rest import ModelApp

PREFIX = "/v2/models/letters"


def letters_in(folder: Path) -> Dataplane:
    """The model's only version, from an artifact in `folder`."""
    uri = str(folder / "artifact")
    about: dict[str, Any] = {"params": {}, "preprocessing_state": {}, "metrics": {}, "lineage": {}}
    with new_artifact(
        uri, name="letters", recipe_path="letters:Letters", signature=Letters.signature, **about
    ) as building:
        write_letters(building / ONNX)
        (building / WEIGHTS).write_bytes(b"")
        (building / GOLDEN).write_bytes(b"")
    plane = Dataplane("letters")
    plane.flip(Lineup("1", {"1": load_version("1", open_artifact(uri))}))
    return plane


def post(dataplane: Dataplane, way: str, **document: Any) -> httpx.Response:
    app = ModelApp(dataplane, None, 10_000)

    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": PREFIX}, receive, send)

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="http://t") as client:
            return await client.post(f"{PREFIX}/{way}", json=document)

    return asyncio.run(once())


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return [orjson.loads(event.removeprefix("data: ")) for event in response.text.split("\n\n")[:-1]]
