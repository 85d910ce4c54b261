"""The rate of requests half a minute from now: a damped trend, and never less than the recent peak.

Exponential smoothing of level and trend (Holt, 1957), the trend damped so that it does not run away (Gardner and
McKenzie, 1985). A wave is met while it rises; after it the peak keeps replicas until it is clear that it is over.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tidepool.pool.staffing import Staffing

Floats = npt.NDArray[np.float64]

SURE = 4.0
"""Standard deviations beyond which a difference isn't chance."""
JITTER = 0.08
"""Part of a rate by which the seconds of steady traffic differ beside chance: clients wait, batch and pause."""
BEFORE = 3
"""Seconds before a fall that tell the rate until then: as many as have passed since, and so many at least."""
RECENT_S = 20
"""Seconds for which a wave that has come back is expected again."""


@dataclass(frozen=True)
class Smoothing:
    """How quickly level and trend follow the rate, per second, and for how long a peak counts."""

    level_s: float = 5.0
    """Seconds in which the level has followed a step by 63 %."""
    trend_s: float = 20.0
    damping_s: float = 60.0
    """Seconds in which a trend fades to 37 %."""
    peak_s: float = 30.0


def ahead(rates: npt.ArrayLike, bin_s: float, horizon_s: float, smoothing: Smoothing | None = None) -> Floats:
    """What to expect `horizon_s` after the end of each bin, in the unit of `rates`.

    `rates` has a row a bin, oldest first, and may have a column an application; so has the answer, whose last row is
    the forecast from now.
    """
    by = smoothing or Smoothing()
    seen = np.asarray(rates, dtype=float)
    gain, trend_gain = 1 - math.exp(-bin_s / by.level_s), 1 - math.exp(-bin_s / by.trend_s)
    damping = math.exp(-bin_s / by.damping_s)
    reach = sum(damping**step for step in range(1, round(horizon_s / bin_s) + 1))
    level, trend = seen[0].copy(), np.zeros_like(seen[0])
    levels, expected = np.empty_like(seen), np.empty_like(seen)
    for index in range(len(seen)):
        before = level
        level = gain * seen[index] + (1 - gain) * (level + damping * trend)
        trend = trend_gain * (level - before) + (1 - trend_gain) * damping * trend
        levels[index] = level
        expected[index] = level + reach * trend
    peak: Floats = np.maximum(expected, recent_peak(levels, max(1, round(by.peak_s / bin_s))))
    return peak


def replicas_wanted(
    rates: Sequence[float],
    staffing: Staffing,
    horizon_s: float = 30.0,
    backlog: float = 0.0,
    drain_s: float = 5.0,
    smoothing: Smoothing | None = None,
) -> int:
    """Replicas that hold the SLO over the next `horizon_s`, from the requests of each of the last seconds.

    `backlog` requests that already wait are to be answered within `drain_s` on top.
    """
    expected = float(ahead(rates, 1.0, horizon_s, smoothing)[-1]) if len(rates) else 0.0
    return staffing.replicas(max(0.0, expected) + backlog / drain_s)


def since_the_fall(rates: Sequence[float], last_s: float = 1.0) -> Sequence[float]:
    """The end of `rates`, since they fell further than chance and jitter explain; all of them if they didn't.

    The second in which they fell is of both, and left out if there is a later one.

    `rates` are requests a second in each of the last seconds, of which the last has lasted `last_s` so far. Two counts
    of a Poisson process, of `s` seconds and of `n` before them, differ by a variance of rate * s * (1 + s / n); where
    the rate itself varies from second to second, by 1 + JITTER^2 * rate as much (a negative binomial's).
    """
    count, seconds = rates[-1] * last_s if rates else 0.0, last_s
    for first in range(len(rates) - 1, 0, -1):
        before = rates[max(0, first - max(BEFORE, len(rates) - first)) : first]
        rate = sum(before) / len(before)
        variance = rate * seconds * (1 + seconds / len(before)) * (1 + JITTER**2 * rate)
        if count < rate * seconds - SURE * math.sqrt(variance):
            return rates[first + 1 :] or rates[first:]
        count, seconds = count + rates[first - 1], seconds + 1.0
    return rates


def in_waves(rates: Sequence[float], at_work: Sequence[bool] = ()) -> bool:
    """Whether the last seconds of `rates` were busy, quiet for two of them at least, then busy again: over their mean,
    and under half of it. Of few requests a second that happens by chance: they are met as if they came in waves.

    `at_work`: of each second, whether replicas were. Who waits for answers asks less: such a second isn't quiet.
    """
    recent = rates[-RECENT_S:]
    mean = sum(recent) / max(len(recent), 1)
    busy = [second for second, rate in enumerate(recent) if rate > mean]
    waiting = at_work[-RECENT_S:] or [False] * len(recent)
    quiet = [rate < mean / 2 and not waits for rate, waits in zip(recent, waiting, strict=True)]
    between = quiet[busy[0] : busy[-1] + 1] if busy else []
    return any(all(pair) for pair in pairwise(between))


def recent_peak(levels: Floats, bins: int) -> Floats:
    """The largest of each row and the `bins - 1` before it."""
    peak, reach = levels.copy(), 1
    while reach < bins:
        shift = min(reach, bins - reach)
        peak[shift:] = np.maximum(peak[shift:], peak[:-shift])
        reach += shift
    return peak
