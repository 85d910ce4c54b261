"""What the pool's policy decides: cases that a person can check."""

from __future__ import annotations

from dataclasses import replace

from tidepool.pool import handover
from tidepool.pool.demand import Demand
from tidepool.pool.moves import Buy, Grant, Grow, Move, Park, Resize, Return, Shrink
from tidepool.pool.policy import MachinesSpec, PolicySpec, decide
from tidepool.pool.state import LIVE, SEGMENTS, App, Node, Reservation, Run, Snapshot

SPEC = PolicySpec()
NOW = 10_000.0


def pool(total: float, *parts: App | Run, demand: Demand | None = None, node: str = "a") -> Snapshot:
    """One node; the parts that hold something hold it there."""
    apps = tuple(part for part in parts if isinstance(part, App))
    runs = tuple(part for part in parts if isinstance(part, Run))
    return Snapshot((Node(node, total),), apps, runs, demand=demand or Demand())


def run(name: str = "train", workers: int = 0, at_most: int = 4, at_least: int = 1, **more: object) -> Run:
    held = {"a": workers} if workers else {}
    return Run(name, at_least, at_most, **{"workers": held, "parkable": True, **more})  # type: ignore[arg-type]


def app(wanted: int, running: int = 0, name: str = "digits", **more: object) -> App:
    return App(name, wanted, {"a": running} if running else {}, **more)  # type: ignore[arg-type]


def resizes(moves: list[Move]) -> dict[str, int]:
    return {move.run: move.to for move in moves if isinstance(move, Resize)}


def test_serving_gets_what_is_free_before_training_yields() -> None:
    moves = decide(pool(4, app(2), run(workers=2)), SPEC, NOW)
    assert [(move.kind, move.awaited) for move in moves if isinstance(move, Grant)] == [("grant", 0.0), ("grant", 0.0)]
    assert not resizes(moves)


def test_training_yields_what_serving_lacks_and_says_why() -> None:
    moves = decide(pool(4, app(2), run(workers=4)), SPEC, NOW)
    shrink, *grants = moves
    assert isinstance(shrink, Shrink)
    assert (shrink.was, shrink.to, shrink.places) == (4, 2, {"a": 2})
    assert [grant.awaited for grant in grants if isinstance(grant, Grant)] == [1.0, 1.0]
    assert "digits asks for 2 replicas and has 0" in shrink.why
    assert "0.053 s" in shrink.why


def test_a_run_parks_at_zero_where_it_may_and_keeps_its_minimum_where_it_may_not() -> None:
    assert isinstance(decide(pool(4, app(4), run(workers=4)), SPEC, NOW)[0], Park)
    moves = decide(pool(4, app(4), run(workers=4, parkable=False)), SPEC, NOW)
    assert resizes(moves) == {"train": 1}
    assert sum(isinstance(move, Grant) for move in moves) == 3


def test_what_is_being_vacated_is_not_asked_for_again() -> None:
    yielding = run(workers=4, leaving={"a": 2})
    moves = decide(pool(4, app(2), yielding), SPEC, NOW)
    assert [move.kind for move in moves] == ["grant", "grant"]
    promised = replace(pool(4, app(2), yielding), reservations=(Reservation("1", "digits", "a", 2, awaited=2),))
    assert [move.kind for move in decide(promised, SPEC, NOW)] == ["shrink", "grant"]  # one replica is still missing


def test_a_promise_that_nobody_asks_for_any_more_is_withdrawn() -> None:
    promised = replace(pool(4, app(0)), reservations=(Reservation("1", "digits", "a", 1),))
    assert [move.kind for move in decide(promised, SPEC, NOW)] == ["withdraw"]


def test_the_lowest_priority_gives_first_then_the_cheapest() -> None:
    low, high = run("low", 2, priority=0, costs=SEGMENTS), run("high", 2, priority=1)
    assert resizes(decide(pool(4, app(1), low, high), SPEC, NOW)) == {"low": 1}
    live, segments = run("live", 2), run("segments", 2, costs=SEGMENTS)
    assert resizes(decide(pool(4, app(1), live, segments), SPEC, NOW)) == {"live": 1}


def test_of_equal_runs_the_one_most_above_its_fair_share_gives() -> None:
    assert resizes(decide(pool(6, app(1), run("big", 4), run("small", 2)), SPEC, NOW)) == {"big": 3}


def test_training_grows_only_after_the_hold() -> None:
    wave = Demand(((0.0, 0.0), (NOW - 60, 2.0), (NOW - 10, 0.0)))
    ebb = pool(4, app(0), run(workers=2), demand=wave)
    assert decide(ebb, SPEC, NOW) == []
    later = decide(ebb, SPEC, NOW + SPEC.hold_s)
    assert [(move.kind, move.to) for move in later if isinstance(move, Grow)] == [("grow", 4)]


def test_a_dear_pause_is_paid_only_for_what_was_idle_long_enough() -> None:
    wave = Demand(((0.0, 0.0), (NOW - 200, 1.0), (NOW, 0.0)))
    dear = pool(8, app(0), run(workers=7, at_most=8, costs=SEGMENTS), demand=wave)
    assert decide(dear, SPEC, NOW + 60) == []  # 60 s of one accelerator; the pause would cost 8 times 13 s
    assert resizes(decide(dear, SPEC, NOW + 105)) == {"train": 8}
    cheap = replace(dear, runs=(replace(dear.runs[0], costs=LIVE),))
    assert resizes(decide(cheap, SPEC, NOW + 60)) == {"train": 8}
    done = replace(dear, runs=(replace(dear.runs[0], remaining_s=20.0),))
    assert decide(done, SPEC, NOW + 500) == []


def test_runs_share_by_priority_and_then_fairly() -> None:
    runs = [
        run("first", at_most=8),
        run("second", at_most=8),
        run("third", at_most=2),
        run("vip", at_most=3, priority=9),
    ]
    assert resizes(decide(pool(11, *runs), SPEC, NOW)) == {"vip": 3, "first": 3, "second": 3, "third": 2}
    runs[0] = run("first", at_most=8, weight=2.0)
    assert resizes(decide(pool(12, *runs), SPEC, NOW)) == {"vip": 3, "first": 5, "second": 2, "third": 2}


def test_a_waiting_run_gets_its_fair_share_from_one_that_has_more() -> None:
    moves = decide(pool(4, run("old", 4), run("new")), SPEC, NOW)
    assert resizes(moves) == {"old": 2}
    assert "new has 0 workers, its fair share is 2" in moves[0].why


def test_a_waiting_run_parks_no_other_of_its_priority() -> None:
    rigid = run("old", 4, at_least=4)
    assert decide(pool(4, rigid, run("new", at_least=2)), SPEC, NOW) == []
    assert resizes(decide(pool(4, rigid, run("new", at_least=2, priority=1)), SPEC, NOW)) == {"old": 0}


def test_no_younger_run_passes_one_that_has_waited_too_long() -> None:
    rigid, large = run("rigid", 4, at_least=4), run("large", at_least=4, since=NOW - 30)
    small = run("small", at_most=1, since=NOW - 1)
    assert resizes(decide(pool(6, rigid, large, small), SPEC, NOW)) == {"small": 1}
    assert decide(pool(6, rigid, large, small), SPEC, NOW + SPEC.patience_s) == []


def test_training_keeps_its_least_share_and_leaves_the_rest_of_its_largest() -> None:
    spec = PolicySpec(training_share=(0.25, 0.75))
    assert resizes(decide(pool(8, app(8), run(workers=6, at_most=8)), spec, NOW)) == {"train": 2}
    assert resizes(decide(pool(8, run(at_most=8)), spec, NOW)) == {"train": 6}


def test_applications_get_their_minimum_first_then_by_priority() -> None:
    small, vip = app(3, name="small", min_replicas=1), app(5, name="vip", priority=1)
    moves = decide(pool(4, small, vip), SPEC, NOW)
    assert [move.app for move in moves if isinstance(move, Grant)] == ["small", "vip", "vip", "vip"]


def test_a_replica_of_several_accelerators_gets_them_on_one_node() -> None:
    nodes = (Node("a", 4), Node("b", 4))
    training = Run("train", 1, 8, {"a": 4, "b": 4}, parkable=True)
    large = App("large", 1, per_replica=4)
    moves = decide(Snapshot(nodes, (large,), (training,)), SPEC, NOW)
    assert [move.places for move in moves if isinstance(move, Shrink)] == [{"a": 4}]
    assert [(move.node, move.awaited) for move in moves if isinstance(move, Grant)] == [("a", 4.0)]


def test_what_no_node_can_hold_takes_nothing_from_training() -> None:
    moves = decide(pool(4, App("huge", 3, per_replica=8), run(workers=4)), SPEC, NOW)
    assert moves == []


def test_what_other_replicas_are_in_the_way_of_is_left_to_training() -> None:
    nodes = (Node("a", 4), Node("b", 4))
    small, large = App("small", 2, {"a": 1, "b": 1}), App("large", 1, per_replica=4)
    wave = Demand(((0.0, 6.0),))
    assert resizes(decide(Snapshot(nodes, (small, large), (run(at_most=9),), demand=wave), SPEC, NOW)) == {"train": 6}


def test_a_machine_about_to_go_is_cleared_and_filled_by_nobody() -> None:
    nodes = (Node("a", 2), Node("spot", 2, closing=True))
    training = Run("train", 1, 4, {"a": 1, "spot": 2}, parkable=True)
    moves = decide(Snapshot(nodes, (App("digits", 1),), (training,)), SPEC, NOW)
    assert resizes(moves) == {"train": 1}
    assert [move.node for move in moves if isinstance(move, Grant)] == ["a"]


BUYING = PolicySpec(machines=MachinesSpec(at_most=2, accelerators=4))


def test_loan_first_buy_second() -> None:
    wave = Demand(((0.0, 0.0), (NOW, 2.0)))
    start = pool(4, app(2), run(workers=4), demand=wave)
    assert not any(isinstance(move, Buy) for move in decide(start, BUYING, NOW))
    lasting = pool(4, app(2, 2), run(workers=2), demand=wave)
    moves = decide(lasting, BUYING, NOW + 61)
    assert [move.machines for move in moves if isinstance(move, Buy)] == [1]
    bought = handover.promise(lasting, moves[0], "7", NOW + 61)
    assert not decide(bought, BUYING, NOW + 62)


def test_demand_that_training_cannot_cover_buys_at_once() -> None:
    moves = decide(pool(4, app(7), run(workers=4)), BUYING, NOW)
    assert [move.machines for move in moves if isinstance(move, Buy)] == [1]


def test_a_bought_machine_returns_the_loan_and_goes_back_after_the_wave() -> None:
    nodes = (Node("a", 4), Node("new", 4, bought=True))
    wave = Demand(((0.0, 0.0), (NOW, 2.0)))
    there = Snapshot(nodes, (app(2, 2),), (run(workers=2),), demand=wave)
    assert resizes(decide(there, BUYING, NOW + 200)) == {"train": 4}
    ebb = Snapshot(nodes, (app(0),), (run(workers=2),), demand=wave.then(NOW + 200, 0.0))
    moves = decide(ebb, BUYING, NOW + 501)
    assert [move.node for move in moves if isinstance(move, Return)] == ["new"]
