"""How promises become facts, and what a snapshot refuses."""

from __future__ import annotations

import pytest

from tidepool.errors import ClusterError
from tidepool.pool import handover
from tidepool.pool.moves import Buy, Grant, Grow, Park, Resume, Return, Shrink, Withdraw
from tidepool.pool.state import App, Node, Reservation, Run, Snapshot


def filled() -> Snapshot:
    """Four accelerators on one node, all in training's hands."""
    training = Run("train", 1, 4, {"a": 4}, parkable=True)
    return Snapshot((Node("a", 4), Node("b", 2)), (App("digits", 1),), (training,))


SHRINK = Shrink("serving lacks one", "train", 4, 3, {"a": 1}, 1.0)
GRANT = Grant("digits asks for 1", "digits", "a", 1.0, awaited=1.0)


def handed_over() -> Snapshot:
    """After the promise of one accelerator, its worker still there."""
    return handover.promise(handover.promise(filled(), SHRINK, "1", 10.0), GRANT, "2", 10.0)


def test_what_is_promised_is_not_free_before_nor_after_the_worker_is_gone() -> None:
    pool = handed_over()
    assert (pool.free["a"], pool.vacating["a"], pool.run("train").state) == (0, 0, "yielding")
    pool = handover.left(pool, "train", "a")
    assert (pool.free["a"], pool.reservations[0].awaited, pool.run("train").state) == (0, 0, "running")
    pool = handover.placed(pool, "digits", "a")
    assert (pool.free["a"], pool.reservations, pool.app("digits").replicas) == (0, (), 1)


def test_what_a_worker_vacates_goes_to_the_oldest_promise_and_the_rest_is_free() -> None:
    half = Grant("half", "digits", "a", 0.5, awaited=0.5)
    pool = handover.promise(filled(), SHRINK, "1", 10.0)
    pool = handover.promise(pool, half, "2", 10.0)
    pool = handover.left(pool, "train", "a")
    assert pool.free["a"] == 0.5


def test_a_worker_that_dies_frees_its_accelerator() -> None:
    pool = handover.left(filled(), "train", "a")
    assert (pool.free["a"], pool.run("train").size) == (1, 3)


def test_a_replica_that_ray_put_elsewhere_ends_its_promise() -> None:
    pool = handover.placed(handed_over(), "digits", "b")
    assert (pool.reservations, pool.free["b"]) == ((), 1)
    assert handover.left(pool, "train", "a").free["a"] == 1


def test_a_replica_that_nobody_expected_drops_the_promise_that_no_longer_fits() -> None:
    pool = Snapshot((Node("a", 1),), (App("digits", 1), App("other", 1)), (), (Reservation("1", "digits", "a", 1.0),))
    pool = handover.placed(pool, "other", "a")
    assert (pool.reservations, pool.free["a"]) == ((), 0)


def test_growing_holds_the_accelerators_at_once_and_joining_ends_when_all_train() -> None:
    pool = handover.promise(filled(), Grow("idle", "train", 4, 6, {"b": 2}, 2.0), "1", 10.0)
    assert (pool.free["b"], pool.run("train").size, pool.run("train").state) == (0, 6, "starting")
    assert handover.joined(pool, "train").run("train").state == "running"
    assert handover.ended(pool, "train").free == {"a": 4, "b": 2}


def test_a_run_parks_and_resumes() -> None:
    pool = handover.promise(filled(), Park("all", "train", 4, 0, {"a": 4}, 4.0), "1", 10.0)
    pool = handover.left(pool, "train", "a", 4)
    assert (pool.run("train").state, pool.run("train").moved) == ("parked", (10.0,))
    pool = handover.promise(pool, Resume("ebb", "train", 0, 2, {"a": 2}, 2.0), "2", 20.0)
    assert (pool.run("train").size, pool.run("train").moved) == (2, (10.0, 20.0))


def test_a_lost_node_takes_everything_on_it_and_what_is_under_its_minimum_yields() -> None:
    training = Run("train", 3, 4, {"a": 2, "b": 2})
    nodes = (Node("a", 4), Node("b", 2))
    pool = Snapshot(nodes, (App("digits", 1, {"b": 0}),), (training,), (Reservation("1", "digits", "a", 1.0),))
    pool = handover.lost(pool, "b")
    assert (pool.run("train").workers, pool.run("train").leaving) == ({"a": 2}, {"a": 2})
    assert handover.lost(pool, "a").reservations == ()


def test_machines_come_and_close() -> None:
    pool = handover.promise(filled(), Buy("a loan lasts", 2, 4.0), "1", 10.0)
    assert [machine.accelerators for machine in pool.coming] == [4.0, 4.0]
    pool = handover.arrived(pool, Node("new", 4, bought=True))
    assert (len(pool.coming), pool.free["new"]) == (1, 4)
    pool = handover.promise(pool, Return("the wave is over", "new"), "2", 20.0)
    assert (pool.nodes[-1].closing, pool.total) == (True, 6)


def test_a_promise_can_be_withdrawn() -> None:
    pool = handover.promise(handed_over(), Withdraw("no longer", "digits", "2"), "3", 11.0)
    assert (pool.reservations, pool.vacating) == ((), {"a": 1})


def test_demand_is_remembered_when_an_application_asks() -> None:
    pool = handover.asked(filled(), App("digits", 3), 10.0)
    pool = handover.asked(pool, App("new", 1, per_replica=2.0), 20.0)
    assert pool.demand.steps == ((10.0, 3.0), (20.0, 5.0))


def test_an_accelerator_held_or_promised_twice_is_refused() -> None:
    with pytest.raises(ClusterError, match="held twice"):
        Snapshot((Node("a", 4),), (App("digits", 1, {"a": 1}),), (Run("train", 1, 4, {"a": 4}),))
    with pytest.raises(ClusterError, match="promised twice"):
        handover.promise(handed_over(), GRANT, "3", 11.0)
    with pytest.raises(ClusterError, match="no such node"):
        Snapshot((Node("a", 4),), (App("digits", 1, {"elsewhere": 1}),))


def test_an_application_asks_for_what_traffic_needs_or_serve_waits_for_within_its_share() -> None:
    assert App("digits", 2, {"a": 3}).asks == 2
    assert App("digits", 2, {"a": 3}, pending=1).asks == 4
    assert App("digits", 9, max_replicas=5).asks == 5
    assert App("digits", 0, min_replicas=1).asks == 1
