"""What the batcher itself costs, and how close it comes to an engine that runs at its best batch size.

    python benchmarks/serving/batching.py

Two tables: processor time of a lone request and of 16 at a time with cheap engines, over that of a direct call; and
engines of known cost behind 64 clients and under twice their capacity. Each figure is the best of several repeats,
since a shared machine only ever adds to them. The synthetic engines sleep: they take no processor from the event loop,
as a GPU doesn't.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy: threads of its own would make the cheap engine's cost a gamble

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from tidepool.errors import Overloaded
from tidepool.recipe import TensorSpec
from tidepool.serve.batching import Batcher
from tidepool.serve.costs import calibrate
from tidepool.serve.protocol import Tensors
from tidepool.serve.stacking import Stacking

STACKING = Stacking([TensorSpec("x", "FP32", (-1, 784))])
ROW: Tensors = {"x": np.ones((1, 784), np.float32)}
REPEATS = 7


@dataclass(frozen=True)
class Engine:
    """Sleeps `fixed_ms + row_ms * rows`, with rows over `knee` three times as dear."""

    fixed_ms: float
    row_ms: float
    slo_ms: float
    knee: int = 1 << 30

    def seconds(self, rows: int) -> float:
        return (self.fixed_ms + self.row_ms * (rows + 2 * max(0, rows - self.knee))) / 1e3

    def __call__(self, batch: Tensors) -> Tensors:
        time.sleep(self.seconds(len(batch["x"])))
        return {"y": batch["x"][:, 0]}

    def best(self, clients: int) -> int:
        """The batch size with the most throughput of those that hold the objective twice over."""
        sizes = [n for n in range(1, clients + 1) if 2 * self.seconds(n) <= self.slo_ms / 1e3]
        return max(sizes, key=lambda n: n / self.seconds(n))


ENGINES = {
    "fixed cost dominates": Engine(20, 0.5, 300),
    "cost by the row": Engine(1, 5, 200),
    "knee at 16 rows": Engine(12, 1, 300, knee=16),
}


def perceptron(calls: int) -> Callable[[Tensors], Tensors]:
    """784 -> 128 -> 10 in numpy, and as many small calls as pre- and postprocessing make."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(784, 128)).astype(np.float32), rng.normal(size=(128, 10)).astype(np.float32)

    def call(batch: Tensors) -> Tensors:
        logits = np.maximum(batch["x"] @ first, 0) @ second
        for _ in range(calls):
            logits = logits - logits.max(axis=1, keepdims=True)
        return {"y": logits}

    return call


def fastest(measure: Callable[[], Coroutine[Any, Any, float]]) -> float:
    """The smallest of several measurements."""
    return min(asyncio.run(measure()) for _ in range(REPEATS))


async def alone(call: Callable[[Tensors], Tensors], batched: bool, requests: int = 5000) -> float:
    """Processor seconds a request, one after another, with a pass of the event loop between two."""
    batcher = Batcher(call, STACKING, 0.05)
    for _ in range(100):
        await batcher.run(ROW, 1)
    began = time.thread_time()
    for _ in range(requests):
        _ = await batcher.run(ROW, 1) if batched else call(ROW)
        await asyncio.sleep(0)
    return (time.thread_time() - began) / requests


async def together(call: Callable[[Tensors], Tensors], batched: bool, clients: int = 16, each: int = 400) -> float:
    """Processor seconds a request with `clients` requests in the air."""
    batcher = Batcher(call, STACKING, 0.05)

    async def client() -> None:
        for _ in range(each):
            _ = await batcher.run(ROW, 1) if batched else call(ROW)
            await asyncio.sleep(0)

    await batcher.run(ROW, 1)
    began = time.thread_time()
    await asyncio.gather(*(client() for _ in range(clients)))
    return (time.thread_time() - began) / (clients * each)


def calibrated(engine: Engine) -> Batcher:
    """A batcher that has met the engine, as a replica's has when it becomes ready."""
    batcher = Batcher(engine, STACKING, engine.slo_ms / 1e3)
    calibrate(batcher.costs, lambda rows: engine({"x": np.ones((rows, 784), np.float32)}), 1024, engine.slo_ms / 2e3)
    return batcher


def tight(engine: Engine, rows: int, seconds: float = 1.0) -> float:
    """Rows a second of the engine alone."""
    batch, done = {"x": np.ones((rows, 784), np.float32)}, 0
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        engine(batch)
        done += rows
    return done / (time.perf_counter() - began)


async def saturated(engine: Engine, clients: int = 64, warm_s: float = 2.0, seconds: float = 2.0) -> float:
    """Rows a second with `clients` that ask again as soon as they are answered."""
    batcher, done = calibrated(engine), 0

    async def client() -> None:
        nonlocal done
        while True:
            await batcher.run(ROW, 1)
            done += 1

    tasks = [asyncio.create_task(client()) for _ in range(clients)]
    await asyncio.sleep(warm_s)
    before, began = done, time.perf_counter()
    await asyncio.sleep(seconds)
    rate = (done - before) / (time.perf_counter() - began)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    return rate


async def overloaded(engine: Engine, rate: float, seconds: float = 4.0) -> tuple[float, float]:
    """Answers within the objective a second, and p99 of the seconds to a refusal; `rate` random arrivals a second."""
    slo_s = engine.slo_ms / 1e3
    batcher, good, refusals, tasks = calibrated(engine), 0, [0.0], set[asyncio.Task[None]]()

    async def client() -> None:
        nonlocal good
        began = time.monotonic()
        try:
            await batcher.run(ROW, 1, deadline=began + slo_s)
            good += time.monotonic() - began <= slo_s
        except Overloaded:
            refusals.append(time.monotonic() - began)

    due = start = time.monotonic()
    while due < start + seconds:
        due += random.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        task = asyncio.create_task(client())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return good / seconds, sorted(refusals)[int(0.99 * len(refusals))]


def main() -> None:
    """Print the tables."""
    print("| cheap engine, us a request | direct | batcher | difference |\n| --- | --- | --- | --- |")
    for calls in (0, 20):
        call = perceptron(calls)
        for name, measure in (("alone", alone), ("16 at a time", together)):
            direct, batched = (fastest(partial(measure, call, on)) * 1e6 for on in (False, True))
            print(
                f"| {calls} more calls, {name} | {direct:.1f} | {batched:.1f} | {batched - direct:+.1f} |", flush=True
            )
    print(
        "\n| engine | best batch | tight loop, rows/s | 64 clients | of it | 2x load: in time | of it | refusal p99 |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, engine in ENGINES.items():
        best = engine.best(64)
        pairs = [(tight(engine, best), asyncio.run(saturated(engine))) for _ in range(3)]
        capacity, rate = max(pairs, key=lambda pair: pair[1] / pair[0])
        good, refusal = asyncio.run(overloaded(engine, 2 * capacity))
        print(
            f"| {name} | {best} | {capacity:.0f} | {rate:.0f} | {rate / capacity:.2f} | {good:.0f} | "
            f"{good / capacity:.2f} | {refusal * 1e3:.1f} ms |",
            flush=True,
        )


if __name__ == "__main__":
    main()
