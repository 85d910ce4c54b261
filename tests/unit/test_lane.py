"""The fast lane beside uvicorn's way: what it takes, what it leaves to uvicorn, and that no client can tell."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import orjson
import pytest

from lanes import LIMIT, Connection, Slow, answers, application, double, wait_until

pytestmark = pytest.mark.usefixtures("own_models")

BODY = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})


def head(path: str = "/v2/models/m/infer", length: int = len(BODY), key: str = "good") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: here", f"authorization: Bearer {key}", f"content-length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def numbers(body: bytes) -> list[float]:
    data: list[float] = orjson.loads(body)["outputs"][0]["data"]
    return data


def test_a_plain_request_is_answered_before_another_is_looked_at() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        for count in (1, 2, 3):
            connection.lane.data_received(head() + BODY)
            read = answers(connection.wire.written)
            assert len(read) == count
            assert read[-1][0].startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"content-type: application/json" in read[-1][0]
            assert numbers(read[-1][1]) == [2.0, 4.0]
        assert connection.app.in_air == 0

    run(main())


@pytest.mark.parametrize("cuts", [[10], [len(head()) - 2], [len(head())], [len(head()) + 5], [len(head()) + 5, 120]])
def test_a_request_in_pieces_is_the_same_request(cuts: list[int]) -> None:
    async def main() -> None:
        connection, whole, begin = Connection(application(double)), head() + BODY, 0
        for end in [*cuts, len(whole)]:
            connection.lane.data_received(whole[begin:end])
            begin = end
        (body,) = await connection.bodies(1)
        if cuts[0] < len(head()):  # uvicorn puts heads together
            assert body == b"detour"
        else:
            assert numbers(body) == [2.0, 4.0]
        assert connection.app.in_air == 0

    run(main())


def test_requests_sent_at_once_are_answered_in_order() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received((head() + BODY) * 2 + b"GET /docs HTTP/1.1\r\nhost: here\r\n\r\n")
        assert await connection.bodies(3) == [b"detour"] * 3

    run(main())


def test_the_end_of_one_may_bring_the_next_with_it() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received(head() + BODY[:20])
        connection.lane.data_received(BODY[20:] + head() + BODY)
        assert [numbers(body) for body in await connection.bodies(2)] == [[2.0, 4.0]] * 2

    run(main())


def test_both_ways_may_take_turns() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        for count, request in enumerate([head() + BODY, b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"] * 2, start=1):
            connection.lane.data_received(request)
            await connection.bodies(count)
        seen = [body == b"detour" for body in await connection.bodies(4)]
        assert seen == [False, True, False, True]

    run(main())


def test_what_comes_before_the_answer_waits_for_it() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(head() + BODY)
        connection.lane.data_received(head("/v2/models/m/versions/1/infer") + BODY)
        assert not connection.wire.reads
        assert connection.app.in_air == 1
        slow.go_on.set()
        assert [numbers(body) for body in await connection.bodies(2)] == [[2.0, 4.0]] * 2
        assert connection.wire.reads
        assert connection.app.in_air == 0

    run(main())


def test_a_client_that_goes_away_gives_up_its_place() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(head() + BODY)
        connection.wire.closed = True
        connection.lane.connection_lost(None)
        await wait_until(lambda: connection.app.in_air == 0)
        slow.go_on.set()
        assert connection.wire.written == b""

    run(main())


def test_a_client_that_goes_away_in_the_middle_of_its_body_gives_up_its_place() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received(head() + BODY[:10])
        assert connection.app.in_air == 1
        connection.lane.connection_lost(None)
        assert connection.app.in_air == 0

    run(main())


def test_a_body_that_does_not_come_gives_up_its_place_and_its_connection() -> None:
    async def main() -> None:
        app = application(double)
        app.patience_s = 0.01
        connection = Connection(app)
        connection.lane.data_received(head() + BODY[:10])
        (said,) = await connection.bodies(1)
        assert b"didn't come in time" in said
        assert connection.wire.written.startswith(b"HTTP/1.1 400")
        assert (connection.wire.closed, app.in_air) == (True, 0)

    run(main())


@pytest.mark.parametrize(
    "refused",
    [head(key="nobody") + BODY, head(length=LIMIT + 1) + b" " * (LIMIT + 1), head("/v2/models/other/infer") + BODY],
)
def test_refusals_go_uvicorns_way(refused: bytes) -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received(refused)
        assert await connection.bodies(1) == [b"detour"]
        assert connection.app.in_air == 0

    run(main())


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v2/models/m/versions/7/infer", BODY, b"404"),
        ("/v2/models/m/infer", b"{]}", b"400"),
        ("/v2/models/m/infer", b"{}", b"400"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(path: str, body: bytes, status: bytes) -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received(head(path, len(body)) + body)
        ((top, said),) = answers(connection.wire.written)
        assert top.split()[1] == status
        assert "error" in orjson.loads(said)
        assert connection.app.in_air == 0

    run(main())


def test_the_last_answer_of_a_connection_says_so() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(head() + BODY)
        connection.lane.shutdown()
        assert not connection.wire.closed
        slow.go_on.set()
        await connection.bodies(1)
        assert b"\r\nconnection: close" in connection.wire.written
        assert connection.wire.closed

    run(main())
