"""An open loop of requests: each is sent when it is due, whatever became of the others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from tidepool.errors import DataError
from tidepool.pool import workload
from tidepool.pool.workload import Floats

WINDOW_S = 5.0
"""Of the rate that is to peak where it is wanted."""


CALM = 0.1
"""The rate between two waves, over that of a wave."""


@dataclass
class Answers:
    """What became of the requests. Seconds from when each was due to its answer, so that a stall is charged in full."""

    latencies_s: list[float] = field(default_factory=list)
    failed: int = 0
    first_s: dict[str, float] = field(default_factory=dict)
    """When each replica, by the text that it answers, answered for the first time."""

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


def waves(seconds: float, period_s: float, peak: float, seed: int = 0) -> Floats:
    """When requests are due that come in waves: half of each period it is calm, then `peak` a second are due."""
    random = np.random.default_rng(seed)
    times = np.sort(random.random(random.poisson(peak * seconds)) * seconds)
    calm = times % period_s < period_s / 2
    due: Floats = times[~calm | (random.random(len(times)) < CALM)]
    return due


def until_new_answers(rises_s: Floats, first_s: Iterable[float]) -> list[float]:
    """For each rise of traffic the seconds until a replica answered that hadn't before; none where no new one did.

    >>> until_new_answers(np.array([30.0, 90.0, 150.0]), [0.1, 33.0, 34.0, 152.5])
    [3.0, 2.5]
    """
    firsts = np.sort(list(first_s))
    ends = np.append(rises_s, np.inf)[1:]
    new = [firsts[(firsts > rise) & (firsts < end)] for rise, end in zip(rises_s, ends, strict=True)]
    return [float(times[0] - rise) for rise, times in zip(rises_s, new, strict=True) if len(times)]


async def send(url: str, due_s: Floats, timeout_s: float = 20.0) -> Answers:
    """GET `url` at each of the times; returns when all are answered or given up."""
    answers, began = Answers(), time.perf_counter()

    async def once(client: httpx.AsyncClient, due: float) -> None:
        try:
            response = await client.get(url)
        except httpx.HTTPError:
            answers.failed += 1
            return
        if response.status_code == 200:
            now = time.perf_counter() - began
            answers.latencies_s.append(now - due)
            answers.first_s.setdefault(response.text, now)
        else:
            answers.failed += 1

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with (
        httpx.AsyncClient(timeout=timeout_s, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as tasks,
    ):
        for due in due_s.tolist():
            await asyncio.sleep(max(0.0, began + due - time.perf_counter()))
            tasks.create_task(once(client, due))
    return answers
