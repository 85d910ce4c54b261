"""The replicas that hold an application's latency objective, from what its replicas report of themselves.

    arrivals of the last minute -> `forecast.ahead` -> `staffing.Staffing` of the reported costs -> replicas

The costs are those that the batcher in each replica learns from its own runs (`costs`), so nothing is measured twice.
What they don't know (the event loop's own work, text that is generated) is left to `autoscale.PoolPolicy`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from tidepool.pool.forecast import RECENT_S, Smoothing, in_waves, replicas_wanted, since_the_fall
from tidepool.pool.staffing import LatencyCurve, Staffing

Vitals = Mapping[str, Sequence[float]]
"""What replicas report (`vitals.Vitals.sample`), each by its name: a value a replica."""

HISTORY_S = 60
"""Seconds of arrivals that the forecast sees."""
SMOOTHING = Smoothing(level_s=1.0, trend_s=40.0, damping_s=30.0, peak_s=5.0)
"""Followed more quickly than in the simulator, whose ticks are of half a minute: here a second decides. A peak counts
for as long as requests fluctuate, unless they fell for certain; that training comes back only after a while is the
pool's own `hold_s`.
"""
RETURNING = Smoothing(level_s=1.0, trend_s=math.inf, peak_s=RECENT_S)
"""While waves come again and again: one that rises is no trend, and between two of them the next one is expected."""
HIGHER = 2.0
"""A wave that is so many times as high as those before it is none of them."""
CHANGED = 0.1
"""Costs that differ by less than this share are still the same."""
IDLE = 0.5
"""Replicas that are at work for less than this share of the time keep nobody waiting."""
CALM = 0.3
"""After a wave, a replica that would be at work for less than this share of the time holds the objective for certain,
whatever runs took in the crowd of the wave: what they cost since then is learned only as requests come."""
PATIENT = 0.5
"""A backlog of less than this share of the objective is the queue's own breath, which the staffing reckons with."""
DRAIN_S = 2.0
"""What is beyond that is to be answered within so long: about as long as a further replica takes to come."""


class Objective:
    """Replicas that hold `slo_s` for one application; what it knows of costs and of time, it is told."""

    def __init__(self, slo_s: float) -> None:
        self._slo_s, self._at_most = slo_s, 0
        self._rates: deque[tuple[int, float, int, int]] = deque(maxlen=HISTORY_S)
        """(second, sum of the rates seen in it, how many were seen, and how often a replica was at work)."""
        self._costs: dict[str, float] = {}
        self._staffing: Staffing | None = None

    def learn(self, vitals: Vitals, at_most: int) -> None:
        """Take over what requests cost, if it isn't what it was; there may be `at_most` replicas. For 100 of them it
        lasts a tenth of a second.
        """
        costs = {name: _mean(vitals[name]) for name in ("one_s", "full_s", "full") if vitals.get(name)}
        if len(costs) < 3:
            return
        if not (self._resembles(costs) and at_most == self._at_most):
            self._costs, self._at_most = costs, at_most
            self._staffing = Staffing(latency_curve(**costs), self._slo_s, at_most)

    def replicas(self, vitals: Vitals, now: float) -> int | None:
        """Replicas for what arrives now and is expected within half a minute; None while no costs are known.

        `now` in seconds, of any clock that doesn't go back.
        """
        busy = vitals.get("busy", ())
        is_idle = max(busy, default=0.0) < IDLE
        self._note(sum(vitals.get("arriving", ())), not is_idle, now)
        staffing = self._staffing  # another thread may be learning
        if staffing is None:
            return None
        beyond = sum(max(0.0, late - PATIENT) for late in vitals.get("late", ()))
        rates: Sequence[float] = [total / count for _, total, count, _ in self._rates]
        smoothing, most = SMOOTHING, self._at_most
        past, at_work = rates[:-1], [often > count / 2 for _, _, count, often in self._rates]
        if in_waves(past, at_work[:-1]) and rates[-1] <= HIGHER * max(past[-RECENT_S:]):
            rates, smoothing = past, RETURNING
        elif is_idle:  # else they may ask less because they wait for answers
            since = since_the_fall(rates, now - int(now))
            if busy and not beyond and len(since) < len(rates):
                most = max(1, math.ceil(sum(busy) / CALM))
            rates = since
        backlog = beyond * self._slo_s * staffing.throughput
        return min(most, replicas_wanted(rates, staffing, backlog=backlog, drain_s=DRAIN_S, smoothing=smoothing))

    def _resembles(self, costs: Mapping[str, float]) -> bool:
        known = self._costs
        return bool(known) and all(
            abs(costs[name] - was) <= CHANGED * max(was, known["one_s"]) for name, was in known.items()
        )

    def _note(self, rate: float, at_work: bool, now: float) -> None:
        second, total, count, often = self._rates.pop() if self._rates else (int(now), 0.0, 0, 0)
        if second != int(now):
            self._rates.append((second, total, count, often))
            total, count, often = 0.0, 0, 0
        self._rates.append((int(now), total + rate, count + 1, often + at_work))


def latency_curve(one_s: float, full_s: float, full: float) -> LatencyCurve:
    """What requests take with 1, 2, 4, ... of them in one replica that batches.

    A run takes `one_s` for one request, `full_s` for `full` of them and what is between for fewer; more than `full`
    take several runs. In the mean a request is in a run with all others that are there; at worst it just missed one,
    and waits for that first. Pauses of the machine are left out: no number of replicas makes them shorter.

    >>> latency_curve(0.1, 0.2, 3.0).mean_s[:3]
    (0.1, 0.15..., 0.26...)
    """
    counts = [2.0**power for power in range(64) if 2.0**power < full] + [full * (2**power) for power in range(3)]
    slope = (full_s - one_s) / (full - 1) if full > 1 else 0.0
    points = []
    for count in counts:
        run_s = max(one_s, one_s + slope * (min(count, full) - 1))
        mean_s = run_s * max(1.0, count / full)
        points.append((count, mean_s, mean_s + (run_s if count > 1 else 0.0)))
    in_flight, mean, p99 = zip(*points, strict=True)
    return LatencyCurve(in_flight, mean, p99)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
