"""What a run of the engine costs: seconds as a function of the batch's size, learned from the runs themselves.

Sizes are counted in whatever the caller counts in (rows; elements where rows differ in length). They fall into
buckets, one a doubling. A bucket keeps its last few runs; the lower third (the 33rd percentile) of their sizes and
that of their seconds make a knot, and the cost curve is the line through the knots. A low percentile, because a pause
or a neighbour on the machine makes runs slower, many times even, and nothing makes them faster; and that of the seconds
belongs to that of the sizes for any curve that rises, so that runs of different sizes may share a bucket.

What has not been measured is thought well of, so that it is tried: beyond the largest knot the curve goes on
as it last rose, and a size that was found slow is forgotten after many runs of the next smaller one.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

KEPT = 9
"""Runs that a bucket remembers."""
TRUSTED = 3
"""Runs that a bucket needs to make a knot: the first of a new size often allocates and says little."""
PROBE_RUNS = 500
"""Runs of a bucket after which the next larger knot is forgotten, if it was not run meanwhile."""
AS_GOOD = 0.98
"""A smaller size with this share of the best throughput is preferred: it answers sooner."""
LADDER = [1, *sorted(scale << power for scale in (2, 3) for power in range(24))]
"""The sizes to choose from: 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
TAIL = 0.99
"""The share of runs that take at most `Costs.excess_s` longer than expected."""
MEAN_WEIGHT = 0.02
"""Weight of the latest run in the running mean of measured over predicted seconds."""
GLANCE_S = 1e-3
"""Between two runs of `Costs.glance` that are learned from: more would teach nothing new."""
EXCESS_STEP = 0.05
"""Step in learning that excess, in predicted run times."""

Number = TypeVar("Number", int, float)


class Costs:
    """The learned curve of one engine. Not thread-safe: it belongs to the event loop."""

    def __init__(self) -> None:
        self.runs = 0
        self.slowness = 1.0
        """Mean seconds of a run over those of an undisturbed one."""
        self.excess_s = 0.0
        """99 of 100 runs take at most this much longer than expected: pauses, neighbours on the machine."""
        self._glances_at = -math.inf
        self._buckets: dict[int, _Bucket] = {}
        self._numbers: list[int] = []
        self._sizes: list[int] = []
        self._seconds: list[float] = []

    def observe(self, size: int, seconds: float) -> None:
        """Learn from one run."""
        self.runs += 1
        number = (size - 1).bit_length()
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = _Bucket()
        knot = bucket.add(size, seconds)
        at = bisect_left(self._numbers, number)
        if at < len(self._numbers) and self._numbers[at] == number:
            self._compare(seconds, self.seconds(size))
            self._sizes[at], self._seconds[at] = knot
            if at + 1 < len(self._numbers):
                self._pass_over(at + 1)
        elif bucket.runs >= TRUSTED or not self._numbers:
            self._numbers.insert(at, number)
            self._sizes.insert(at, knot[0])
            self._seconds.insert(at, knot[1])

    def glance(self, size: int, began: float, clock: Callable[[], float]) -> None:
        """The same for a run that has just ended, one of many: most of those of known sizes are only counted."""
        if began < self._glances_at and self._sizes and size <= self._sizes[-1]:
            self.runs += 1
        else:
            self.observe(size, clock() - began)
            self._glances_at = began + GLANCE_S

    def expected(self, size: int) -> float:
        """The mean seconds of a run as things are; 0 while nothing is known."""
        return self.slowness * self.seconds(size)

    def seconds(self, size: int) -> float:
        """The seconds of an undisturbed run; 0 while nothing is known."""
        sizes, seconds = self._sizes, self._seconds
        at = bisect_left(sizes, size)
        if at < len(sizes):
            if at == 0 or sizes[at] == size:
                return seconds[at]
            share = (size - sizes[at - 1]) / (sizes[at] - sizes[at - 1])
            return seconds[at - 1] + share * (seconds[at] - seconds[at - 1])
        if not sizes:
            return 0.0
        return seconds[-1] + (size - sizes[-1]) * self._last_slope()

    def best(self, largest: int) -> int:
        """The size with the most throughput, up to `largest` and to twice what is known."""
        sizes = self._reachable(largest)
        rates = [size / max(self.seconds(size), 1e-9) for size in sizes]
        enough = max(rates) * AS_GOOD
        return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= enough)

    def holding(self, slo_s: float, largest: int) -> int:
        """The largest size that holds a latency objective, up to `largest` and to twice what is known; at least 1.

        A request that just missed a run waits for it and then for its own: two runs must fit (Shen et al., Nexus,
        SOSP 2019), and one pause. Where pauses alone break the objective, small batches would only make it worse.
        """
        longest_s = max((slo_s - self.excess_s) / 2, slo_s / 4)
        return max((size for size in self._reachable(largest) if self.seconds(size) <= longest_s), default=1)

    def drain(self, size: int, limit: int, company: int = 0) -> float:
        """Seconds that work of this size takes in runs of at most `limit`, the last filled up by `company`."""
        runs, rest = divmod(size, limit)
        return runs * self.expected(limit) + (self.expected(max(rest, company)) if rest else 0.0)

    def saving(self, size: int, more: int) -> float:
        """Seconds of the engine that `more` save by joining a run of `size`.

        Waiting `d` for them raises throughput if and only if (size + more) / (d + seconds(size + more)) is over
        size / seconds(size), that is, if `d` is under what this returns. Where seconds = a * size + b it is
        b * more / size: their part of the fixed cost.
        """
        return max(self.seconds(size) * (size + more) / size - self.seconds(size + more), 0.0)

    def pace(self, each: float, limit: int) -> dict[str, float]:
        """What undisturbed runs of requests of size `each` cost in batches of at most `limit`, for
        `objective.latency_curve`; {} while nothing is known.
        """
        if not self.runs:
            return {}
        one, full = max(1, round(each)), max(1.0, limit / each)
        return {"one_s": self.seconds(one), "full_s": self.seconds(max(one, limit)), "full": full}

    def curve(self) -> list[tuple[int, float]]:
        """The knots: (size, seconds), ascending."""
        return list(zip(self._sizes, self._seconds, strict=True))

    def _reachable(self, largest: int) -> list[int]:
        reach = min(largest, 2 * self._sizes[-1]) if self._sizes else 1
        return LADDER[: max(1, bisect_left(LADDER, reach + 1))]

    def _last_slope(self) -> float:
        """Seconds a size, beyond the last knot: as between the last two, but no more than proportional."""
        proportional = self._seconds[-1] / self._sizes[-1]
        if len(self._sizes) == 1:
            return proportional / 2
        slope = (self._seconds[-1] - self._seconds[-2]) / (self._sizes[-1] - self._sizes[-2])
        return min(max(slope, proportional / 4), proportional)

    def _compare(self, seconds: float, predicted: float) -> None:
        """Learn how runs differ from undisturbed ones.

        The excess is a quantile by stochastic approximation (Robbins and Monro, 1951): at rest when 1 run in 100 is
        longer.
        """
        self.slowness += MEAN_WEIGHT * (seconds / max(predicted, 1e-9) - self.slowness)
        if seconds > self.slowness * predicted + self.excess_s:
            self.excess_s += EXCESS_STEP * TAIL * predicted
        elif self.excess_s > 0.0:
            self.excess_s -= EXCESS_STEP * (1 - TAIL) * predicted

    def _pass_over(self, at: int) -> None:
        bucket = self._buckets[self._numbers[at]]
        bucket.passed_over += 1
        if bucket.passed_over > PROBE_RUNS:
            del self._buckets[self._numbers[at]]
            del self._numbers[at], self._sizes[at], self._seconds[at]


class _Bucket:
    """The last runs of sizes within one doubling."""

    def __init__(self) -> None:
        self.passed_over = 0
        self.runs = 0
        self._sizes: _Window[int] = _Window()
        self._seconds: _Window[float] = _Window()

    def add(self, size: int, seconds: float) -> tuple[int, float]:
        """Remember a run; returns the lower third of the sizes and of the seconds."""
        self.passed_over = 0
        self.runs += 1
        return self._sizes.add(size), self._seconds.add(seconds)


class _Window(Generic[Number]):
    """The last few values, in the order of their coming and in that of their size."""

    def __init__(self) -> None:
        self._recent: deque[Number] = deque()
        self._ordered: list[Number] = []

    def add(self, value: Number) -> Number:
        """Remember a value; returns the lower third."""
        recent, ordered = self._recent, self._ordered
        recent.append(value)
        oldest = recent.popleft() if len(recent) > KEPT else None
        if value != oldest:
            if oldest is not None:
                del ordered[bisect_left(ordered, oldest)]
            insort(ordered, value)
        return ordered[(len(ordered) - 1) // 3]


def calibrate(
    costs: Costs,
    run: Callable[[int], object],
    largest: int,
    longest_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> None:
    """Learn the curve before the first request: run 1, 2, 4, ... up to `largest`, or until one takes over `longest_s`.

    `run(size)` runs the engine once.
    """
    size = 1
    while size <= largest and costs.seconds(size) <= longest_s:
        for _ in range(TRUSTED + 1):
            began = clock()
            run(size)
            costs.observe(size, clock() - began)
        size *= 2
