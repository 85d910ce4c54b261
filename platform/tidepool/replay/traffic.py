"""An open loop of requests: each is sent when it is due, whatever became of the others."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from tidepool.errors import DataError
from tidepool.pool import workload
from tidepool.pool.workload import Floats

WINDOW_S = 5.0
"""Of the rate that is to peak where it is wanted."""


@dataclass
class Answers:
    """What became of the requests. Seconds from when each was due to its answer, so that a stall is charged in full."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0

    def late(self, slo_s: float) -> int:
        """Answers that took longer than `slo_s`."""
        return sum(latency > slo_s for latency in self.latencies_s)

    def percentile(self, share: float) -> float:
        """The latency that `share` of the answers stayed below; NaN for none."""
        return float(np.quantile(self.latencies_s, share)) if self.latencies_s else float("nan")


def due_times(trace: Path | None, seconds: float, compress: float, peak: float, seed: int = 0) -> Floats:
    """When requests are due, in seconds from the beginning.

    Those of a trace, `compress` times as fast, thinned at random until the rate peaks at `peak` a second; without a
    trace those of a generated shape.

    Raises:
        DataError: the trace can't be read, or is too thin for the peak.
    """
    random = np.random.default_rng(seed)
    if trace is not None:
        times = workload.read_requests(trace) / compress
        times = times[times < seconds]
    else:
        bins = int(seconds)
        shape = workload.generate_shape(bins, compress, seed)
        counts = random.poisson(shape * 4 * peak / shape.max())
        times = np.sort(np.repeat(np.arange(bins), counts) + random.random(counts.sum()))
    windows = np.bincount((times / WINDOW_S).astype(int)) / WINDOW_S
    kept = peak / windows.max() if len(windows) else 0.0
    if not 0 < kept <= 1:
        seen = f"at most {windows.max() if len(windows) else 0:.1f} requests a second"
        raise DataError("the trace is too thin", seen=seen, allowed=f"{peak:.1f} or more", remedy="raise --compress")
    return times[random.random(len(times)) < kept]


async def send(url: str, due_s: Floats, timeout_s: float = 60.0) -> Answers:
    """GET `url` at each of the times; returns when all are answered or given up."""
    answers, began = Answers(), time.perf_counter()

    async def once(client: httpx.AsyncClient, due: float) -> None:
        try:
            response = await client.get(url)
        except httpx.HTTPError:
            answers.failed += 1
            return
        if response.status_code == 200:
            answers.latencies_s.append(time.perf_counter() - began - due)
        else:
            answers.failed += 1

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(timeout=timeout_s, limits=limits) as client, asyncio.TaskGroup() as tasks:
        for due in due_s.tolist():
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.create_task(once(client, due))
    return answers
