"""Connections between requests: one timer each, which ends those that have rested for long enough, and no others."""

from __future__ import annotations

import asyncio

import orjson
import pytest

from lanes import Connection, Slow, application, double, wait_until

pytestmark = pytest.mark.usefixtures("own_models")

BODY = orjson.dumps({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [1, 2]}]})
HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: h\r\nauthorization: Bearer good\r\ncontent-length: %d\r\n\r\n"
REQUEST = HEAD % len(BODY) + BODY
OTHER = b"GET /docs HTTP/1.1\r\nhost: here\r\n\r\n"


@pytest.mark.parametrize("request_", [REQUEST, OTHER], ids=["in the lane", "uvicorn's way"])
def test_a_connection_that_rests_is_ended(request_: bytes) -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.timeout_keep_alive = 0.01  # type: ignore[assignment]
        connection.lane.data_received(request_)
        await connection.bodies(1)
        await wait_until(connection.wire.is_closing)

    asyncio.run(main())


def test_the_beginning_of_a_request_does_not_keep_a_connection_for_ever() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.timeout_keep_alive = 0.01  # type: ignore[assignment]
        connection.lane.data_received(OTHER + OTHER[:10])
        await connection.bodies(1)
        await wait_until(connection.wire.is_closing)

    asyncio.run(main())


def test_a_connection_that_is_lost_leaves_no_timer() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received(REQUEST)
        connection.lane.connection_lost(ConnectionResetError())
        assert connection.lane.timeout_keep_alive_task is None

    asyncio.run(main())


def test_one_timer_goes_on_through_many_requests() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        lane = connection.lane
        lane.data_received(REQUEST)
        timer = lane.timeout_keep_alive_task
        lane.data_received(REQUEST)
        assert lane.timeout_keep_alive_task is timer is not None
        lane.timeout_keep_alive_handler()
        assert lane.timeout_keep_alive_task not in (timer, None)
        assert not connection.wire.closed

    asyncio.run(main())


def test_a_request_in_the_air_keeps_its_connection() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(REQUEST)
        connection.lane.timeout_keep_alive_handler()
        assert not connection.wire.closed
        slow.go_on.set()
        await connection.bodies(1)

    asyncio.run(main())
