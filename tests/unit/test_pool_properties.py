"""What holds for the pool's policy on any demand, with promises kept late, in any order, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from tidepool.pool import handover
from tidepool.pool.moves import Grant, Grow, Move, Resize, Resume, Withdraw
from tidepool.pool.policy import PolicySpec, decide
from tidepool.pool.state import EPSILON, LIVE, SEGMENTS, App, Node, Run, Snapshot

NOW = 10_000.0
EXAMPLES = 60
"""Of each property; a thousand were run once."""


class World:
    """The pool as a cluster would move it: promises are kept some of the time, in any order."""

    def __init__(self, start: Snapshot, spec: PolicySpec) -> None:
        self.pool, self.promised, self.spec = start, start, spec
        self.now, self.moves = NOW, 0
        self.resized: dict[str, list[float]] = {}

    def step(self, wishes: list[int], seconds: float, keep: list[bool], steady: bool = True) -> list[Move]:
        self.now += seconds
        for one, wish in zip(self.pool.apps, wishes, strict=False):
            self.pool = handover.asked(self.pool, replace(one, wanted=wish), self.now)
        moves = decide(self.pool, self.spec, self.now)
        assert moves == decide(self.pool, self.spec, self.now)
        for move in moves:
            self.moves += 1
            self.pool = handover.promise(self.pool, move, str(self.moves), self.now)
            if isinstance(move, Resize):
                self.resized.setdefault(move.run, []).append(self.now)
        if steady:
            self.check(moves)
        self.promised = self.pool
        self._keep_promises(iter(keep))
        return moves

    def machine(self, event: str) -> None:
        """A machine is lost, told to go, or new."""
        nodes = self.pool.nodes
        if event == "lost" and nodes:
            self.pool = handover.lost(self.pool, nodes[0].name)
        elif event == "closing" and nodes:
            self.pool = replace(self.pool, nodes=(replace(nodes[0], closing=True), *nodes[1:]))
        elif event == "new":
            self.pool = handover.arrived(self.pool, Node(f"new{self.now}", 3))

    def check(self, moves: list[Move]) -> None:
        """Nothing twice (the snapshot checks that), nobody under its minimum, never more resizes than allowed."""
        for one in self.pool.runs:
            assert one.size == 0 or one.min_workers <= one.size <= one.max_workers
            if not one.parkable:
                assert one.size or not one.workers
            recent = [at for at in self.resized.get(one.name, []) if at > self.now - 60]
            assert len(recent) <= self.spec.max_moves_per_minute
        resized = [move.run for move in moves if isinstance(move, Resize)]
        assert len(resized) == len(set(resized))

    def _keep_promises(self, keep: Iterator[bool]) -> None:
        for one in self.pool.runs:
            for node, count in one.leaving.items():
                if next(keep, True):
                    self.pool = handover.left(self.pool, one.name, node, count)
            if next(keep, True):
                self.pool = handover.joined(self.pool, one.name)
        for promise in self.pool.reservations:
            if not promise.awaited and next(keep, True):
                self.pool = handover.placed(self.pool, promise.app, promise.node)
        for one in self.pool.apps:
            places = [node for node, count in one.running.items() for _ in range(count)]
            for node in places[: max(0, one.replicas - one.asks)]:
                if next(keep, True):
                    self.pool = handover.stopped(self.pool, one.name, node)


def runs_strategy(per_worker: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[Run, ...]]:
    def build(parts: list[tuple[int, int, bool, int, float, bool]]) -> tuple[Run, ...]:
        return tuple(
            Run(f"run{i}", least, least + more, parkable=park, priority=rank, per_worker=per, since=i,
                costs=LIVE if live else SEGMENTS)
            for i, (least, more, park, rank, per, live) in enumerate(parts)
        )  # fmt: skip

    one = st.tuples(st.integers(1, 3), st.integers(0, 6), st.booleans(), st.integers(0, 2), per_worker, st.booleans())
    return st.lists(one, max_size=5).map(build)


def worlds(sizes: list[float]) -> st.SearchStrategy[Snapshot]:
    def build(totals: list[int], replicas: list[tuple[float, int]], runs: tuple[Run, ...]) -> Snapshot:
        nodes = tuple(Node(f"n{i}", total) for i, total in enumerate(totals))
        apps = tuple(App(f"app{i}", 0, per_replica=size, priority=rank) for i, (size, rank) in enumerate(replicas))
        return Snapshot(nodes, apps, runs)

    apps = st.lists(st.tuples(st.sampled_from(sizes), st.integers(0, 1)), min_size=1, max_size=3)
    return st.builds(
        build, st.lists(st.integers(1, 8), min_size=1, max_size=4), apps, runs_strategy(st.sampled_from(sizes))
    )


STEPS = st.lists(
    st.tuples(
        st.lists(st.integers(0, 12), min_size=3, max_size=3),
        st.sampled_from([0.5, 3.0, 20.0, 130.0]),
        st.lists(st.booleans(), max_size=12),
    ),
    min_size=1,
    max_size=30,
)
SPECS = st.builds(PolicySpec, max_moves_per_minute=st.integers(2, 5), hold_s=st.sampled_from([0.0, 5.0, 15.0]))


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds([0.5, 1.0, 2.0, 3.0]), SPECS, STEPS)
def test_nothing_is_promised_twice_and_nobody_thrashes_on_any_demand(
    start: Snapshot, spec: PolicySpec, steps: list[tuple[list[int], float, list[bool]]]
) -> None:
    world = World(start, spec)
    for wishes, seconds, keep in steps:
        world.step(wishes, seconds, keep)


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds([0.5, 1.0, 2.0]), STEPS, st.lists(st.sampled_from(["lost", "closing", "new", ""]), max_size=30))
def test_machines_may_come_and_go_at_any_time(
    start: Snapshot, steps: list[tuple[list[int], float, list[bool]]], events: list[str]
) -> None:
    world = World(start, PolicySpec())
    for (wishes, seconds, keep), event in zip(steps, events, strict=False):
        world.machine(event)
        moves = world.step(wishes, seconds, keep, steady=False)
        closing = {node.name for node in world.pool.nodes if node.closing}
        assert not closing & {move.node for move in moves if isinstance(move, Grant)}
        assert not any(closing & set(move.places) for move in moves if isinstance(move, Grow | Resume))
        assert not any(one.staying.get(node) for one in world.promised.runs for node in closing)


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds([1.0]), SPECS, STEPS)
def test_what_serving_can_have_is_always_promised_to_it(
    start: Snapshot, spec: PolicySpec, steps: list[tuple[list[int], float, list[bool]]]
) -> None:
    world = World(start, spec)
    for wishes, seconds, keep in steps:
        guaranteed = sum(one.guaranteed for one in world.pool.runs)
        world.step(wishes, seconds, keep)
        held = sum(one.replicas for one in world.promised.apps) + len(world.promised.reservations)
        asked = sum(max(one.asks, one.replicas) for one in world.promised.apps)
        assert held >= min(asked, world.pool.total - guaranteed) - EPSILON


@settings(max_examples=EXAMPLES, deadline=None)
@given(worlds([1.0]), st.lists(st.booleans(), max_size=5))
def test_with_steady_demand_the_pool_comes_to_rest_and_nothing_is_idle(start: Snapshot, keep: list[bool]) -> None:
    world = World(start, PolicySpec(hold_s=5.0, patience_s=1e9))
    for _ in range(30):
        moves = world.step([1, 1, 1], 130.0, keep)
    assert moves == []
    hungry = [one for one in world.pool.runs if one.size < one.max_workers and (one.size or one.min_workers == 1)]
    assert not hungry or sum(world.pool.free.values()) < 1


def one_node(total: float, training: Run) -> Snapshot:
    return Snapshot((Node("a", total),), (App("digits", 0),), (training,))


def test_waves_every_five_seconds_move_training_once() -> None:
    world = World(one_node(8, Run("train", 1, 8, parkable=True)), PolicySpec())
    for wave in range(36):
        world.step([6 if wave % 2 else 0], 5.0, [])
    assert len(world.resized["train"]) == 2  # one start, one shrink


def test_withdrawn_room_is_not_lost() -> None:
    world = World(one_node(2, Run("train", 1, 2, {"a": 2}, parkable=True)), PolicySpec())
    world.step([2], 1.0, [False])
    moves = world.step([0], 1.0, [True])
    assert sum(isinstance(move, Withdraw) for move in moves) == 2
    assert [type(move) for move in world.step([0], 60.0, [])] == [Resume]
