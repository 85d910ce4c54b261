"""Large bodies over real sockets, on the event loops of asyncio and uvloop: the same answers as small ones get."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
import uvloop

from lanes import answers, application, detour, double, wait_until
from tidepool.cluster import sockets
from tidepool.serve import codecs, lane, shortcut
from tidepool.serve.intake import LARGE
from tidepool.serve.neighbour import Neighbour
from tidepool.serve.rest import ModelApp

pytestmark = [
    pytest.mark.usefixtures("own_models"),
    pytest.mark.skipif(
        not sockets.BOUND.exists() or int(sockets.BOUND.read_text()) < sockets.BACKLOG,
        reason="this system lets too few connections wait for Unix sockets to be of use",
    ),
]

ROWS = np.arange(2.0 * LARGE, dtype=np.float32).reshape(-1, 2)
BODY = codecs.encode_request({"x": ROWS}, {"x": "FP32"})
Runner = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Runner:
    """Runs a scenario on an event loop of either kind."""

    def run(scenario: Coroutine[Any, Any, None]) -> None:
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(scenario)

    return run


@dataclass
class Client:
    """A connection to a server of model m."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    app: ModelApp
    path: Path
    """Of the server's Unix socket."""

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answers(self, count: int) -> list[tuple[bytes, bytes]]:
        received = b""
        while len(answers(received)) < count:
            data = await self.reader.read(1 << 16)
            assert data
            received += data
        return answers(received)

    async def answer(self) -> tuple[bytes, bytes]:
        (answer,) = await self.answers(1)
        return answer


@contextlib.asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Client]:
    """A client of a server such as a replica's, by its Unix socket."""
    app = application(double)
    app.max_body_bytes = 10 * len(BODY)
    shortcut.publish("/v2/models/m", app)
    config = uvicorn.Config(detour, port=0, http="tidepool.serve.lane:Lane", lifespan="off", log_config=None)
    server, given = Neighbour(config), config.bind_socket()
    serving = asyncio.create_task(server.serve(sockets=[given]))
    await wait_until(lambda: server.started)
    path = folder / f"{sockets.LOCALHOST}:{given.getsockname()[1]}"
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        yield Client(reader, writer, app, path)
    finally:
        writer.close()
        server.should_exit = True
        await serving


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where servers of this test put their Unix sockets."""
    monkeypatch.setenv(sockets.CONTROL, str(tmp_path / "admin.sock"))
    return sockets.folder()


def head(length: int = len(BODY)) -> bytes:
    lines = [
        "POST /v2/models/m/infer HTTP/1.1",
        "host: here",
        "authorization: Bearer good",
        f"content-length: {length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def check(answer: tuple[bytes, bytes]) -> None:
    outputs = codecs.decode(answer[1].replace(b'"outputs"', b'"inputs"')).inputs
    assert np.array_equal(outputs["y"], 2 * ROWS)


@pytest.mark.parametrize("first", [0, 1, LARGE, len(BODY) - LARGE, len(BODY) - 1])
def test_a_large_body_is_read_whole_wherever_it_is_cut(run: Runner, folder: Path, first: int) -> None:
    async def scenario() -> None:
        async with connected(folder) as client:
            for _ in range(2):
                await client.send(head() + BODY[:first])
                await wait_until(lambda: client.app.in_air == 1)
                await client.send(BODY[first:])
                check(await client.answer())
            assert client.app.in_air == 0

    run(scenario())


def test_a_connection_that_rests_keeps_no_body(run: Runner, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rooms: list[weakref.ref[Any]] = []

    def watched(size: int) -> memoryview:
        room = np.empty(size, np.uint8)
        rooms.append(weakref.ref(room))
        return room.data

    monkeypatch.setattr(lane, "memory", watched)

    async def scenario() -> None:
        async with connected(folder) as client:
            for _ in range(2):
                await client.send(head() + BODY)
                check(await client.answer())
            gc.collect()
            assert [room() for room in rooms] == [None, None]

    run(scenario())


def test_what_follows_a_large_body_is_the_next_request(run: Runner, folder: Path) -> None:
    async def scenario() -> None:
        async with connected(folder) as client:
            await client.send(head() + BODY + b"GET /docs HTTP/1.1\r\nhost: here\r\n\r\n")
            doubled, (_, body) = await client.answers(2)
            check(doubled)
            assert body == b"detour"

    run(scenario())


def test_a_client_that_goes_away_in_the_middle_gives_up_its_place(run: Runner, folder: Path) -> None:
    async def scenario() -> None:
        async with connected(folder) as client:
            await client.send(head() + BODY[: 2 * LARGE])
            await wait_until(lambda: client.app.in_air == 1)
            client.writer.close()
            await wait_until(lambda: client.app.in_air == 0)

    run(scenario())


def test_a_large_body_that_does_not_come_gives_up_its_place_and_its_connection(run: Runner, folder: Path) -> None:
    async def scenario() -> None:
        async with connected(folder) as client:
            client.app.patience_s = 0.05
            await client.send(head() + BODY[:LARGE])
            top, said = await client.answer()
            assert top.startswith(b"HTTP/1.1 400")
            assert b"didn't come in time" in said
            assert await client.reader.read() == b""
            assert client.app.in_air == 0

    run(scenario())


def test_both_doors_lead_to_the_same_server(run: Runner, folder: Path) -> None:
    async def ask(transport: httpx.AsyncHTTPTransport, url: str) -> str:
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            return (await client.get(f"{url}/docs")).text

    async def scenario() -> None:
        async with connected(folder) as client:
            by_socket: Awaitable[str] = ask(httpx.AsyncHTTPTransport(uds=str(client.path)), "http://here")
            by_port = ask(httpx.AsyncHTTPTransport(), f"http://127.0.0.1:{client.path.name.partition(':')[2]}")
            assert await asyncio.gather(by_socket, by_port) == ["detour", "detour"]

    run(scenario())


def test_many_clients_may_come_at_once(run: Runner, folder: Path) -> None:
    async def scenario() -> None:
        async with connected(folder) as client:
            with contextlib.ExitStack() as stack:
                for _ in range(200):  # none of them is accepted before all are there
                    newcomer = stack.enter_context(socket.socket(socket.AF_UNIX))
                    newcomer.setblocking(False)
                    newcomer.connect(str(client.path))

    run(scenario())


def test_a_server_that_can_have_no_unix_socket_does_without(run: Runner, folder: Path) -> None:
    folder.parent.joinpath("replicas").write_text("in the way")

    async def scenario() -> None:
        config = uvicorn.Config(detour, port=0, lifespan="off", log_config=None)
        server, given = Neighbour(config), config.bind_socket()
        serving = asyncio.create_task(server.serve(sockets=[given]))
        await wait_until(lambda: server.started)
        async with httpx.AsyncClient(trust_env=False) as client:
            assert (await client.get(f"http://127.0.0.1:{given.getsockname()[1]}/")).text == "detour"
        server.should_exit = True
        await serving

    run(scenario())
