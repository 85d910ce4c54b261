"""The batcher, with an engine in virtual time for its decisions, and with real threads for their effects."""

from __future__ import annotations

import asyncio
import random
import selectors
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any

import numpy as np
import pytest

from tidepool.recipe import TensorSpec
from tidepool.serve.batching import Batcher
from tidepool.serve.costs import Costs
from tidepool.serve.protocol import Tensors
from tidepool.serve.queueing import TryLater
from tidepool.serve.stacking import Pad, Stacking

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


def taught(seconds: float) -> Costs:
    """Costs of an engine that takes so long for any batch of up to 64."""
    costs = Costs()
    for size in (1, 2, 4, 8, 16, 32, 64):
        for _ in range(5):
            costs.observe(size, seconds)
    return costs


class Gate:
    """A real engine that waits until it is opened, then doubles; it fails where a row is negative."""

    def __init__(self) -> None:
        self.open, self.running = threading.Event(), threading.Event()
        self.batches: list[list[float]] = []
        self.threads: set[str] = set()

    def __call__(self, batch: Tensors) -> Tensors:
        self.threads.add(threading.current_thread().name)
        self.running.set()
        assert self.open.wait(10)
        self.batches.append(batch["x"][:, 0].tolist())
        if (batch["x"] < 0).any():
            raise ValueError(f"bad among {len(batch['x'])}")
        return {"y": batch["x"] * 2}


async def behind(
    gate: Gate, batcher: Batcher, requests: list[Tensors], cancel: tuple[int, ...] = ()
) -> list[Tensors | BaseException]:
    """Outcomes of requests that arrive while the engine is busy with another; some are cancelled before it is free."""
    first = asyncio.ensure_future(batcher.run(row(), 1))
    await asyncio.to_thread(gate.running.wait, 10)
    tasks = [asyncio.ensure_future(batcher.run(request, 1)) for request in requests]
    await asyncio.sleep(0)
    for index in cancel:
        tasks[index].cancel()
    await asyncio.sleep(0)
    assert batcher.load.requests == len(requests) - len(cancel)
    gate.open.set()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


def doubled(answer: Tensors | BaseException) -> float:
    assert isinstance(answer, dict), answer
    return float(answer["y"][0, 0])


def test_what_arrives_while_the_engine_is_busy_shares_the_next_run() -> None:
    gate = Gate()
    batcher = Batcher(gate, STACKING, 1.0, costs=taught(0.1))
    outcomes = asyncio.run(behind(gate, batcher, [row(value) for value in (1, 2, 3)]))
    assert [doubled(answer) for answer in outcomes] == [2, 4, 6]
    assert gate.batches == [[0], [1, 2, 3]]


def test_one_bad_row_fails_alone() -> None:
    gate = Gate()
    batcher = Batcher(gate, STACKING, 1.0, costs=taught(0.1))
    one, bad, three, four = asyncio.run(behind(gate, batcher, [row(value) for value in (1, -1, 3, 4)]))
    assert isinstance(bad, ValueError)
    assert str(bad) == "bad among 1"
    assert [doubled(answer) for answer in (one, three, four)] == [2, 6, 8]
    assert gate.batches[1] == [1, -1, 3, 4]


def test_one_bad_row_fails_alone_on_the_event_loop_too() -> None:
    gate = Gate()
    gate.open.set()

    async def scenario() -> list[Any]:
        batcher = Batcher(gate, STACKING, 1.0, costs=taught(0.001))
        with pytest.raises(ValueError, match="bad"):
            await batcher.run(row(-1), 1)
        return await asyncio.gather(*(batcher.run(row(v), 1) for v in (1, 2, -1, 4)), return_exceptions=True)

    one, two, bad, four = asyncio.run(scenario())
    assert isinstance(bad, ValueError)
    assert [doubled(answer) for answer in (one, two, four)] == [2, 4, 8]
    assert [2, -1, 4] in gate.batches


def test_a_cancelled_request_frees_its_place_and_stops_nobody() -> None:
    gate = Gate()
    batcher = Batcher(gate, STACKING, 1.0, costs=taught(0.1))
    one, cancelled, three = asyncio.run(behind(gate, batcher, [row(value) for value in (1, 2, 3)], cancel=(1,)))
    assert isinstance(cancelled, asyncio.CancelledError)
    assert (doubled(one), doubled(three)) == (2, 6)
    assert gate.batches == [[0], [1, 3]]


def test_a_request_that_is_cancelled_while_it_runs_stops_nobody() -> None:
    gate = Gate()

    async def scenario() -> float:
        batcher = Batcher(gate, STACKING, 1.0, costs=taught(0.1))
        running = asyncio.ensure_future(batcher.run(row(1), 1))
        await asyncio.to_thread(gate.running.wait, 10)
        waiting = asyncio.ensure_future(batcher.run(row(2), 1))
        running.cancel()
        gate.open.set()
        return doubled(await waiting)

    assert asyncio.run(scenario()) == 4


@pytest.mark.parametrize(("seconds", "here"), [(0.001, True), (0.1, False)])
def test_cheap_runs_stay_on_the_event_loop_and_dear_ones_leave_it(seconds: float, here: bool) -> None:
    gate = Gate()
    gate.open.set()
    batcher = Batcher(gate, STACKING, 1.0, costs=taught(seconds))
    asyncio.run(learn(batcher, rounds=1, clients=4))
    assert (gate.threads == {threading.current_thread().name}) is here


def test_a_request_alone_reaches_the_engine_uncopied() -> None:
    seen: list[Tensors] = []

    def keep(batch: Tensors) -> Tensors:
        seen.append(batch)
        return batch

    async def scenario() -> None:
        batcher, request = Batcher(keep, STACKING, 1.0), row(1)
        for _ in range(3):
            answer = await batcher.run(request, 1)
            assert seen[-1]["x"] is request["x"]
            assert answer["x"] is request["x"]

    asyncio.run(scenario())


def test_ragged_requests_are_answered_as_if_alone() -> None:
    stacking = Stacking([TensorSpec("x", "FP32", (-1, -1))], {"x": Pad(axis=1, lengths=(4, 8), outputs={"y": 1})})
    gate = Gate()
    requests = [{"x": np.full((1, length), length, np.float32)} for length in (2, 3, 4, 6, 8, 11)]
    outcomes = asyncio.run(behind(gate, Batcher(gate, stacking, 1.0, costs=taught(0.1)), requests))
    for answer, request in zip(outcomes, requests, strict=True):
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["y"], request["x"] * 2)
    assert sorted(map(len, gate.batches)) == [1, 1, 2, 3], "the first, and one batch for each length: 11, 8 and 4"


def test_a_model_that_exits_takes_nobody_with_it() -> None:
    def leave(_: Tensors) -> Tensors:
        raise SystemExit(3)

    async def scenario() -> None:
        batcher = Batcher(leave, STACKING, 1.0)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await batcher.run(row(), 1)

    asyncio.run(scenario())
