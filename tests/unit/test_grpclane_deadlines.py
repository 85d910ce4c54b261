"""Calls to infer in a replica's HTTP server whose time is up, or whose client is gone."""

from __future__ import annotations

import asyncio

import pytest

from calls import Response, infer
from lanes import Connection, Slow, application, double, wait_until

pytestmark = pytest.mark.usefixtures("own_models")

OK = "0"


def test_a_deadline_that_passes_frees_the_place_at_once() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(infer(grpc_timeout="50m"))
        assert connection.app.in_air == 1
        await wait_until(lambda: connection.wire.written != b"")
        assert Response(connection.wire.written).status == "4"
        assert connection.app.in_air == 0
        slow.go_on.set()
        connection.lane.data_received(infer())
        await wait_until(lambda: b"grpc-status: 0" in connection.wire.written)
        assert Response(connection.wire.written).whole == 2

    asyncio.run(main())


def test_a_call_that_cannot_be_answered_in_its_time_is_refused_at_once() -> None:
    async def main() -> None:
        slow = Slow()
        connection, other = (Connection(app) for app in [application(slow, inline_s=0.0)] * 2)
        batcher = connection.app.dataplane.choose(None).batcher
        batcher.costs.observe(1, 10.0)
        connection.lane.data_received(infer())
        other.lane.data_received(infer(grpc_timeout="5S"))
        await wait_until(lambda: other.wire.written != b"")
        response = Response(other.wire.written)
        assert (response.status, "can't be met" in response.details) == ("8", True)
        slow.go_on.set()
        await wait_until(lambda: connection.wire.written != b"")

    asyncio.run(main())


def test_a_deadline_holds_for_the_sending_as_well() -> None:
    async def main() -> None:
        connection, data = Connection(application(double)), infer(grpc_timeout="10m")
        connection.lane.data_received(data[:-20])
        await wait_until(lambda: connection.wire.written != b"")
        connection.lane.data_received(data[-20:] + infer())
        response = Response(connection.wire.written)
        assert (response.whole, response.status, response.answer) == (2, OK, [2.0, 4.0])
        assert connection.app.in_air == 0

    asyncio.run(main())


@pytest.mark.parametrize("sent", [infer(), infer()[:-10]])
def test_a_client_that_goes_away_gives_up_its_place(sent: bytes) -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(sent)
        assert connection.app.in_air == 1
        connection.wire.closed = True
        connection.lane.connection_lost(None)
        assert connection.app.in_air == 0
        await wait_until(lambda: not connection.lane.tasks)
        slow.go_on.set()
        assert connection.wire.written == b""

    asyncio.run(main())
