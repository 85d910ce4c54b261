"""What the batcher does, with a real event loop and real threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest

from tidepool.recipe import TensorSpec
from tidepool.serve.batching import Batcher
from tidepool.serve.costs import Costs
from tidepool.serve.protocol import Tensors
from tidepool.serve.stacking import Stacking

STACKING = Stacking([TensorSpec("x", "FP32", (-1, 2))])


def row(value: float = 0.0) -> Tensors:
    return {"x": np.full((1, 2), value, np.float32)}


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

    async def scenario() -> None:
        await asyncio.gather(*(batcher.run(row(), 1) for _ in range(4)))

    asyncio.run(scenario())
    assert (gate.threads == {threading.current_thread().name}) is here


def test_two_workers_run_at_the_same_time() -> None:
    both = threading.Barrier(2)

    def meet(batch: Tensors) -> Tensors:
        both.wait(10)
        return batch

    async def scenario() -> None:
        batcher = Batcher(meet, STACKING, 1.0, workers=2)
        await asyncio.gather(batcher.run(row(1), 1), batcher.run(row(2), 1))

    asyncio.run(scenario())


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
    stacking = Stacking([TensorSpec("x", "FP32", (-1, -1))])
    gate = Gate()
    requests = [{"x": np.full((1, length), length, np.float32)} for length in (2, 4, 4, 8, 4, 8)]
    outcomes = asyncio.run(behind(gate, Batcher(gate, stacking, 1.0, costs=taught(0.1)), requests))
    for answer, request in zip(outcomes, requests, strict=True):
        assert isinstance(answer, dict)
        np.testing.assert_array_equal(answer["y"], request["x"] * 2)
    assert sorted(map(len, gate.batches)) == [1, 1, 2, 3], "the first, and one batch for each length: 2, 8 and 4"


@pytest.mark.parametrize("seconds", [1.0, 1e-3, 1e-6])
def test_a_model_that_exits_takes_nobody_with_it(seconds: float) -> None:
    def leave(_: Tensors) -> Tensors:
        raise SystemExit(3)

    async def scenario() -> None:
        batcher = Batcher(leave, STACKING, 1.0)
        batcher.costs.observe(1, seconds)  # by which it runs in a thread, or on the event loop
        with pytest.raises(RuntimeError, match="SystemExit"):
            await batcher.run(row(), 1)
        with pytest.raises(RuntimeError, match="SystemExit"):
            await asyncio.gather(*(batcher.run(row(), 1) for _ in range(3)))

    asyncio.run(scenario())
