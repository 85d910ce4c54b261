"""Connections to a replica's HTTP server without a network: bytes in, bytes out.

The application behind uvicorn's way answers "detour" here.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from tidepool.recipe import Signature, TensorSpec
from tidepool.serve import shortcut
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.batching import Batcher
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion
from tidepool.serve.lane import Lane
from tidepool.serve.protocol import Tensors
from tidepool.serve.rest import ModelApp
from tidepool.serve.stacking import Stacking

SIGNATURE = Signature(inputs=(TensorSpec("x", "FP32", (-1, 2)),), outputs=(TensorSpec("y", "FP32", (-1, 2)),))
LIMIT = 100_000
DEADLINE_S = 60.0


def application(model: Callable[[Tensors], Tensors], inline_s: float = 1.0) -> ModelApp:
    """Of a model m that runs in a thread of its own if `inline_s` is 0."""
    batcher = Batcher(model, Stacking(SIGNATURE.inputs), 0.1, inline_s=inline_s)
    if inline_s:
        batcher.costs.observe(1, 1e-6)
    plane = Dataplane("m")
    plane.flip(Lineup("1", {"1": LoadedVersion("1", "d" * 64, SIGNATURE, model, batcher)}))
    keys = Keyring([Key("good", "good", digest("good"), ("*",), 0.0, None)])
    return ModelApp(plane, keys, LIMIT, max_in_air=4)


def double(inputs: Tensors) -> Tensors:
    return {"y": inputs["x"] * 2}


class Slow:
    """Doubles when it may."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, inputs: Tensors) -> Tensors:
        assert self.go_on.wait(DEADLINE_S)
        return double(inputs)


async def detour(scope: Any, receive: Any, send: Any) -> None:
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"6")]})
    await send({"type": "http.response.body", "body": b"detour"})


class Wire(asyncio.Transport):
    """A transport that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written, self.closed, self.reads = b"", False, True

    def write(self, data: Any) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True


class Connection:
    """One to a server of `app`, its bytes handed over by hand."""

    def __init__(self, app: ModelApp) -> None:
        shortcut.publish("/v2/models/m", app)
        config = uvicorn.Config(detour, lifespan="off", log_config=None, access_log=False)
        self.app, self.wire, self.lane = app, Wire(), Lane(config, ServerState(), {})
        self.lane.connection_made(self.wire)

    async def bodies(self, count: int) -> list[bytes]:
        """The bodies of the first `count` answers; there must be no more."""
        await wait_until(lambda: len(answers(self.wire.written)) >= count)
        read = answers(self.wire.written)
        assert len(read) == count
        return [body for _, body in read]


def answers(received: bytes) -> list[tuple[bytes, bytes]]:
    """Head and body of each whole answer."""
    found = []
    while b"\r\n\r\n" in received:
        top, _, rest = received.partition(b"\r\n\r\n")
        length = int(top.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        if len(rest) < length:
            break
        found.append((top, rest[:length]))
        received = rest[length:]
    return found


async def wait_until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.001)
