"""What the batcher decides, with an engine and an event loop in virtual time."""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tidepool.errors import TryLater
from tidepool.recipe import TensorSpec
from tidepool.serve.batching import INLINE_S, Batcher
from tidepool.serve.costs import calibrate
from tidepool.serve.protocol import Tensors
from tidepool.serve.stacking import Stacking

STACKING = Stacking([TensorSpec("x", "FP32", (-1, 2))])


def row(value: float = 0.0, rows: int = 1) -> Tensors:
    return {"x": np.full((rows, 2), value, np.float32)}


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only when nothing else is left to do."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.now


class _Selector(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self.loop = loop

    def select(self, timeout: float | None = None) -> list[Any]:
        ready = super().select(0)
        if not ready and timeout:
            self.loop.now += timeout + 1e-9
        return ready


class VirtualEngine(Executor):
    """Takes `seconds(rows)` of the loop's time for a run; one worker, with a clock of its own while it runs."""

    def __init__(self, loop: VirtualLoop, seconds: Callable[[int], float]) -> None:
        self.loop, self.seconds = loop, seconds
        self.batches: list[int] = []
        self._free_at, self._at = 0.0, None

    def clock(self) -> float:
        return self.loop.now if self._at is None else self._at

    def __call__(self, batch: Tensors) -> Tensors:
        self.batches.append(len(batch["x"]))
        cost = self.seconds(len(batch["x"]))
        if self._at is None:
            self.loop.now += cost
        else:
            self._at += cost
        return {"y": batch["x"][:, 0]}

    def submit(self, work: Callable[..., None], /, *args: Any, **_: Any) -> Any:
        *arguments, _loop = args
        self._at = max(self._free_at, self.loop.now)
        work(*arguments, self)
        self._free_at, self._at = self._at, None

    def call_soon_threadsafe(self, tell: Callable[..., None], *args: Any) -> None:
        self.loop.call_at(self.clock(), tell, *args)


def virtual(
    scenario: Callable[[Batcher, VirtualEngine], Coroutine[Any, Any, Any]],
    seconds: Callable[[int], float],
    slo_s: float = 0.1,
    **options: Any,
) -> Any:
    """The result of a scenario in virtual time."""
    loop = VirtualLoop()
    engine = VirtualEngine(loop, seconds)
    try:
        batcher = Batcher(engine, STACKING, slo_s, pool=engine, clock=engine.clock, **options)
        return loop.run_until_complete(scenario(batcher, engine))
    finally:
        loop.close()


async def wait(seconds: float) -> None:
    """Let time pass."""
    await asyncio.sleep(seconds)


async def stop(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def dear(rows: int) -> float:
    """5 ms and 0.5 ms a row: to a thread."""
    return 0.005 + 0.0005 * rows


def cheap(rows: int) -> float:
    """0.2 ms and 10 us a row: on the event loop."""
    return 0.0002 + 0.00001 * rows


async def learn(batcher: Batcher, rounds: int = 60, clients: int = 32) -> None:
    """Let the batcher meet load."""
    for _ in range(rounds):
        await asyncio.gather(*(batcher.run(row(), 1) for _ in range(clients)))


@pytest.mark.parametrize("seconds", [dear, cheap])
def test_a_lone_client_gets_the_bare_time_of_the_engine(seconds: Callable[[int], float]) -> None:
    async def scenario(batcher: Batcher, engine: VirtualEngine) -> list[float]:
        await learn(batcher)
        await batcher.run(row(), 1)
        latencies = []
        for _ in range(20):
            began = engine.clock()
            await batcher.run(row(), 1)
            latencies.append(engine.clock() - began)
            await wait(0.003)
        return latencies

    assert virtual(scenario, seconds)[1:] == pytest.approx([seconds(1)] * 19, rel=0.01)


@pytest.mark.parametrize(("seconds", "largest"), [(lambda rows: 6e-5 * rows, 1), (lambda rows: 6e-5, 16)])
def test_short_runs_gather_if_company_saves_something(seconds: Callable[[int], float], largest: int) -> None:
    async def scenario(batcher: Batcher, engine: VirtualEngine) -> int:
        calibrate(batcher.costs, lambda size: engine(row(rows=size)), 8, 1.0, engine.clock)
        engine.batches.clear()
        await learn(batcher, rounds=20, clients=16)
        return max(engine.batches)

    assert virtual(scenario, seconds) == largest


@pytest.mark.parametrize("seconds", [0.0003, 0.0009, 0.0015, 0.0019])
def test_of_a_backlog_as_many_run_as_fit_before_others_have_their_turn(seconds: float) -> None:
    async def scenario(batcher: Batcher, engine: VirtualEngine) -> list[float]:
        for _ in range(20):
            await batcher.run(row(), 1)
        waiting = [asyncio.ensure_future(batcher.run(row(), 1)) for _ in range(100)]
        loop, passes = asyncio.get_running_loop(), [asyncio.get_running_loop().time()]
        while not all(each.done() for each in waiting):
            await asyncio.sleep(0)
            passes.append(loop.time())
        assert engine.batches == [1] * 120
        return [after - before for before, after in pairwise(passes)]

    turns, runs = virtual(scenario, lambda rows: seconds * rows, largest=1), int(INLINE_S / seconds)
    assert sum(turns) == pytest.approx(100 * seconds, rel=0.01)
    assert max(turns) == pytest.approx(runs * seconds)
    assert sum(turn == pytest.approx(max(turns)) for turn in turns) >= 100 // runs - 5


def test_it_tells_how_many_came_and_what_requests_of_their_size_cost() -> None:
    async def scenario(batcher: Batcher, _: VirtualEngine) -> dict[str, float]:
        await learn(batcher)
        await asyncio.gather(*(batcher.run(row(rows=3), 3) for _ in range(60 * 32)))
        return {**batcher.pace, "arrived": batcher.arrived}

    pace = virtual(scenario, dear)
    assert pace["arrived"] == 2 * 60 * 32
    assert pace["one_s"] == pytest.approx(dear(2), rel=0.05)  # 1 row and 3, in the mean
    assert pace["full_s"] == pytest.approx(dear(round(2 * pace["full"])), rel=0.05)
    assert pace["full"] > 4


@pytest.mark.parametrize("seconds", [dear, cheap])
def test_what_arrives_together_is_run_together(seconds: Callable[[int], float]) -> None:
    async def scenario(batcher: Batcher, engine: VirtualEngine) -> list[int]:
        await learn(batcher)
        await batcher.run(row(), 1)
        engine.batches.clear()
        await learn(batcher, rounds=1, clients=10)
        return engine.batches

    batches = virtual(scenario, seconds)
    assert sum(batches) == 10
    assert len(batches) <= 2


@pytest.mark.parametrize(
    "seconds", [dear, lambda rows: 0.002 * rows + 0.001, lambda rows: dear(rows) + 0.003 * max(0, rows - 16)]
)
def test_saturated_it_does_95_percent_of_the_best_batch_size(seconds: Callable[[int], float]) -> None:
    async def scenario(batcher: Batcher, engine: VirtualEngine) -> float:
        async def client() -> None:
            while True:
                await batcher.run(row(), 1)
                await wait(0.0001)

        tasks = [asyncio.create_task(client()) for _ in range(64)]
        await wait(5)
        before = sum(engine.batches)
        await wait(5)
        done = sum(engine.batches) - before
        await stop(tasks)
        return done / 5

    best = max(rows / seconds(rows) for rows in range(1, 65) if 2 * seconds(rows) <= 0.1)
    assert virtual(scenario, seconds) >= 0.95 * best


async def arrivals(
    batcher: Batcher, engine: VirtualEngine, rate: float, slo_s: float
) -> tuple[list[float], list[TryLater]]:
    """Latencies of the answers and the refusals among 10 s of random arrivals, after 2 s of getting used to them."""
    rng, latencies, refusals, tasks = random.Random(0), [], [], set[asyncio.Task[None]]()

    async def client() -> None:
        began = engine.clock()
        try:
            await batcher.run(row(), 1, deadline=began + slo_s)
            if began > 2:
                latencies.append(engine.clock() - began)
        except TryLater as error:
            if began > 2:
                refusals.append(error)

    while engine.clock() < 12:
        await wait(rng.expovariate(rate))
        task = asyncio.create_task(client())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return latencies, refusals


def slow(rows: int) -> float:
    """20 ms and 5 ms a row."""
    return 0.02 + 0.005 * rows


SLOW_CAPACITY = max(rows / slow(rows) for rows in range(1, 100) if 2 * slow(rows) <= 0.4)


def test_below_capacity_the_objective_holds_and_nobody_is_refused() -> None:
    latencies, refusals = virtual(lambda b, e: arrivals(b, e, 0.7 * SLOW_CAPACITY, 0.4), slow, slo_s=0.4)
    assert not refusals
    assert np.percentile(latencies, 99) <= 0.4


def test_at_twice_capacity_the_engine_stays_useful_and_refusals_say_when_to_come_back() -> None:
    latencies, refusals = virtual(lambda b, e: arrivals(b, e, 2 * SLOW_CAPACITY, 0.4), slow, slo_s=0.4)
    in_time = sum(latency <= 0.4 for latency in latencies)
    assert in_time / 10 >= 0.9 * SLOW_CAPACITY
    assert all(0 < error.retry_after_s < 1 for error in refusals)


def test_who_asks_little_is_not_held_up_by_who_asks_much() -> None:
    async def scenario(batcher: Batcher, engine: VirtualEngine) -> float:
        await learn(batcher)
        flood = [asyncio.create_task(batcher.run(row(), 1, key="much")) for _ in range(1000)]
        await asyncio.sleep(0)
        began = engine.clock()
        await batcher.run(row(), 1, key="little")
        latency = engine.clock() - began
        await stop(flood)
        return latency

    assert virtual(scenario, dear) < 4 * dear(100)


def test_an_idle_engine_runs_even_what_it_expects_to_be_late() -> None:
    async def scenario(batcher: Batcher, engine: VirtualEngine) -> int:
        await batcher.run(row(), 1)
        await batcher.run(row(), 1, deadline=engine.clock() + 0.001)
        return len(engine.batches)

    assert virtual(scenario, dear) == 2


def test_the_load_is_told() -> None:
    async def scenario(batcher: Batcher, _: VirtualEngine) -> None:
        await learn(batcher)
        assert (batcher.load.requests, batcher.load.bytes) == (0, 0)
        tasks = [asyncio.create_task(batcher.run(row(), 1)) for _ in range(10)]
        await asyncio.sleep(0)
        assert (batcher.load.requests, batcher.load.bytes) == (10, 80)
        assert batcher.load.seconds >= dear(10)
        await asyncio.gather(*tasks)

    virtual(scenario, dear)
