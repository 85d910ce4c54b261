"""Workers that are started before a replica needs them, as they are ordered; what Ray does is in tests/integration."""

from __future__ import annotations

import importlib
import sys
from typing import cast

import pytest

from tidepool.serve.standby import COMES_S, MISSED_S, STAYS_S, Raylet, Standby


class FakeRaylet:
    """A node whose workers come when the test says so."""

    def __init__(self, name: str, unused: int = 0, is_out: bool = False) -> None:
        self.id, self.there, self.is_out = name, unused, is_out
        self.ordered, self.has_note = 0, False

    def unused(self) -> int:
        if self.is_out:
            raise OSError("it doesn't answer")
        return self.there

    def is_ordered(self) -> bool:
        return self.has_note

    def order(self) -> None:
        self.ordered += 1
        self.has_note = True

    def come(self) -> None:
        self.there, self.has_note = self.there + 1, False


class Watched:
    """A standby, and a clock that the test turns."""

    def __init__(self, count: int, *nodes: FakeRaylet) -> None:
        self.now, self.nodes = 0.0, nodes
        self.standby = Standby(count, lambda: self.now)

    def after(self, seconds: float) -> list[int]:
        """How many each node was asked for in all, after one more look so much later."""
        self.now += seconds
        self.standby.replenish(cast("tuple[Raylet, ...]", self.nodes))
        return [node.ordered for node in self.nodes]


def test_each_node_gets_as_many_as_it_lacks_one_at_a_time() -> None:
    full, empty = FakeRaylet("full", 2), FakeRaylet("empty")
    watched = Watched(2, full, empty)
    assert watched.after(0) == [0, 0]
    assert watched.after(MISSED_S) == [0, 1]
    assert watched.after(MISSED_S) == [0, 1], "the one that was ordered is on its way"
    empty.come()
    assert [watched.after(1), watched.after(MISSED_S)] == [[0, 1], [0, 2]]
    empty.come()
    assert watched.after(MISSED_S) == [0, 2]


def test_the_next_is_not_ordered_while_the_replica_that_took_one_starts() -> None:
    node = FakeRaylet("node", 1)
    watched = Watched(1, node)
    watched.after(100)
    node.there = 0
    assert [watched.after(0), watched.after(MISSED_S / 2), watched.after(MISSED_S / 2)] == [[0], [0], [1]]


def test_where_no_worker_takes_a_note_unused_ones_do_not_pile_up() -> None:
    node = FakeRaylet("node")
    watched = Watched(1, node)
    hours = [[watched.after(2) for _ in range(int(STAYS_S / 2))][-1] for _ in range(3)]
    assert hours == [[6], [7], [8]], "each is gone after an hour"


def test_a_keeper_that_is_started_anew_orders_none_beside_one_that_is_on_its_way() -> None:
    node = FakeRaylet("node")
    node.order()
    watched = Watched(1, node)
    assert [watched.after(0), watched.after(2 * MISSED_S)] == [[1], [1]]


def test_one_that_is_lost_on_its_way_is_ordered_again_after_a_minute() -> None:
    node = FakeRaylet("node")
    watched = Watched(1, node)
    watched.after(0)
    assert [watched.after(MISSED_S), watched.after(COMES_S - 1), watched.after(1)] == [[1], [1], [2]]
    node.come()
    watched.after(1)
    node.there = 0
    watched.after(1)
    assert [watched.after(MISSED_S), watched.after(COMES_S)] == [[3], [4]], "the next is waited for no longer"


def test_an_order_that_was_heard_and_not_answered_is_no_reason_for_another() -> None:
    class Slow(FakeRaylet):
        def order(self) -> None:
            super().order()
            raise TimeoutError("deadline exceeded")

    watched = Watched(1, Slow("node"))
    looks = [watched.after(2) for _ in range(20)]
    assert looks[-1] == [1]


def test_a_node_that_does_not_answer_keeps_the_others_from_nothing() -> None:
    watched = Watched(1, FakeRaylet("out", is_out=True), FakeRaylet("node"))
    watched.after(0)
    assert watched.after(MISSED_S) == [0, 1]


def test_a_worker_lives_though_it_cannot_be_prepared(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("no node here")

    monkeypatch.setattr("ray.get_runtime_context", fail)
    monkeypatch.delitem(sys.modules, "tidepool.serve.warming", raising=False)
    importlib.import_module("tidepool.serve.warming")
    assert "this process isn't ready for a replica" in caplog.text
