"""How many replicas hold an SLO at a rate of requests: a queue fed by a measured latency curve.

A replica is measured once: with n requests in flight, how long does one take, in the mean and at the 99th percentile?
From that alone, c replicas behind a balancing proxy are a birth-death queue: requests arrive as a Poisson process, and
N of them in flight leave at the rate of c replicas with N/c each. Its stationary law is a product of ratios (Kleinrock,
Queueing Systems I, section 3.2); with replicas that serve up to a bound at constant speed it is Erlang's C formula, and
its answers follow the square-root staffing rule (Halfin and Whitt, 1981): many replicas together need less headroom
each. As long as requests in flight share a replica equally, only the mean of their work matters (Cohen, 1979).
An arriving request sees the stationary law (Wolff, 1982); given n in flight, its latency is taken as lognormal.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidepool.errors import SpecError

Floats = npt.NDArray[np.float64]

Z99 = 2.3263478740408408
"""The 99th percentile of the standard normal law."""
BEYOND = 3.0
"""The curve is continued at its last throughput until the mean latency is so many times the SLO."""
STATES = 4000
"""Numbers in flight that are told apart; many replicas are reckoned in wider steps."""


@dataclass(frozen=True)
class LatencyCurve:
    """What one replica was measured to do with `in_flight` requests at a time: seconds that one of them takes.

    Raises:
        SpecError: the points aren't in order, or a percentile is below its mean.
    """

    in_flight: tuple[float, ...]
    mean_s: tuple[float, ...]
    p99_s: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip(self.in_flight, self.in_flight[1:], strict=False))
        paired = len(self.in_flight) == len(self.mean_s) == len(self.p99_s) > 0
        above = all(0 < mean <= p99 for mean, p99 in zip(self.mean_s, self.p99_s, strict=False))
        if not (rising and paired and above):
            allowed = "as many means as percentiles as numbers in flight, rising, each 0 < mean <= p99"
            raise SpecError("not a latency curve", seen=self, allowed=allowed, remedy="measure it again")

    @property
    def throughput(self) -> float:
        """Requests a second of one replica that is full."""
        return self.in_flight[-1] / self.mean_s[-1]


class Staffing:
    """Replicas that hold an SLO: for each number up to `at_most` the rate of requests that it can take.

    `slo_s` is the latency that the share `quantile` of answers must meet, in seconds. An SLO that even a lone request
    misses too often can't be held by any number; then each replica is given one request at a time.
    """

    def __init__(self, curve: LatencyCurve, slo_s: float, at_most: int, quantile: float = 0.99) -> None:
        self.slo_s, self.throughput = slo_s, curve.throughput
        self._curve, self._late = curve, 1 - quantile
        self._in_flight, self._rates = _continued(curve, slo_s)
        self._late_at = np.array([_late_share(mean, p99, slo_s) for mean, p99 in self._latencies()])
        counts = sorted(
            {min(at_most, c) for c in range(1, 17)} | {min(at_most, round(16 * 1.1**i)) for i in range(150)}
        )
        self._counts = np.array([0, *counts], dtype=float)
        self._held = np.array([0.0, *(self._rate_held(c) for c in counts)])

    def rate(self, replicas: float) -> float:
        """The largest rate, in requests a second, at which so many replicas hold the SLO."""
        return float(np.interp(replicas, self._counts, self._held))

    def replicas(self, rate: float) -> int:
        """The least replicas that hold the SLO at a rate of requests a second, at most `at_most`."""
        return math.ceil(float(self.needed(np.array(rate))) - 1e-9)

    def needed(self, rates: Floats) -> Floats:
        """The same for many rates at once, in fractions of replicas."""
        found: Floats = np.interp(rates, self._held, self._counts)
        return found

    def late(self, rate: float, replicas: float) -> float:
        """The share of requests that miss the SLO in the long run; 1 if the replicas can't keep up."""
        if rate <= 0:
            return 0.0
        if rate >= replicas * self.throughput:
            return 1.0
        full = replicas * self._in_flight[-1]
        step = max(1, round(full / STATES))
        each = np.arange(step, full + step, step) / replicas
        leave = replicas * np.interp(each, self._in_flight, self._rates)
        weights = np.concatenate([[0.0], np.cumsum(step * np.log(rate / leave))])
        law = np.exp(weights - weights.max())
        beyond = law[-1] * rate / (leave[-1] - rate) / step
        late = np.interp(np.concatenate([[0.0], each]) + 1 / replicas, self._in_flight, self._late_at)
        return float((law @ late + beyond) / (law.sum() + beyond))

    def _rate_held(self, replicas: int) -> float:
        """By bisection: what is late rises with the rate."""
        low, high = 0.0, replicas * self.throughput
        if self.late(1e-9, replicas) > self._late:
            return replicas / self._curve.mean_s[0]
        for _ in range(20):
            rate = (low + high) / 2
            low, high = (rate, high) if self.late(rate, replicas) <= self._late else (low, rate)
        return low

    def _latencies(self) -> list[tuple[float, float]]:
        """(mean, p99) at each of the continued curve's points."""
        curve, tail = self._curve, self._curve.p99_s[-1] / self._curve.mean_s[-1]
        mean = [n / rate if rate else curve.mean_s[0] for n, rate in zip(self._in_flight, self._rates, strict=True)]
        ratio = np.interp(self._in_flight, curve.in_flight, np.divide(curve.p99_s, curve.mean_s), right=tail)
        return [(m, m * float(r)) for m, r in zip(mean, ratio, strict=True)]


def _continued(curve: LatencyCurve, slo_s: float) -> tuple[Floats, Floats]:
    """(requests in flight, requests a second) of one replica, from none to far more than the SLO allows."""
    last = max(curve.in_flight[-1], BEYOND * slo_s * curve.throughput)
    points = np.concatenate([[0.0], np.linspace(curve.in_flight[0], last, 400)])
    measured = [n / s for n, s in zip(curve.in_flight, curve.mean_s, strict=True)]
    return points, np.interp(points, [0.0, *curve.in_flight], [0.0, *measured])


def _late_share(mean_s: float, p99_s: float, slo_s: float) -> float:
    """The share of a lognormal law with this mean and 99th percentile that is over `slo_s`.

    From p99 = exp(mu + Z99 sigma) and mean = exp(mu + sigma^2 / 2); a tail too long for the law is cut to its longest.
    """
    spread = math.log(p99_s / mean_s)
    sigma = max(1e-6, Z99 - math.sqrt(max(0.0, Z99**2 - 2 * spread)))
    mu = math.log(mean_s) - sigma**2 / 2
    return 0.5 * math.erfc((math.log(slo_s) - mu) / (sigma * math.sqrt(2)))
