"""Workers that are started before a replica needs them, as they are ordered; what Ray does is in tests/integration."""

from __future__ import annotations

import asyncio
from typing import cast

from tidepool.serve.standby import STARTS_S, Raylet, Standby


class FakeRaylet:
    """A node whose workers come when the test says so."""

    def __init__(self, name: str, unused: int = 0) -> None:
        self.id, self.there, self.ordered = name, unused, 0

    def unused(self) -> int:
        return self.there

    def order(self) -> None:
        self.ordered += 1


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def replenish(standby: Standby, *nodes: FakeRaylet) -> list[int]:
    """How many each node was asked for in all, after one more look."""
    standby.replenish(cast("list[Raylet]", nodes))
    return [node.ordered for node in nodes]


def test_each_node_gets_as_many_as_it_lacks_one_at_a_time() -> None:
    clock, full, empty = Clock(), FakeRaylet("full", 2), FakeRaylet("empty")
    standby = Standby(2, clock)
    assert replenish(standby, full, empty) == [0, 1]
    assert replenish(standby, full, empty) == [0, 1], "the one that was ordered is on its way"
    empty.there, clock.now = 1, STARTS_S
    assert replenish(standby, full, empty) == [0, 2]
    empty.there, clock.now = 2, 2 * STARTS_S
    assert replenish(standby, full, empty) == [0, 2]


def test_one_that_never_came_is_ordered_again() -> None:
    clock, node = Clock(), FakeRaylet("node")
    standby = Standby(1, clock)
    replenish(standby, node)
    clock.now = STARTS_S
    assert replenish(standby, node) == [2]


def test_for_none_nothing_is_done() -> None:
    asyncio.run(Standby(0).keep())
