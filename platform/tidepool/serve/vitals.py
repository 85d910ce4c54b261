"""How busy a replica is, for the autoscaler: a share of time, which means the same for every model and machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

SCHEDULER = Path("/proc/thread-self/schedstat")
"""Linux: nanoseconds on a processor, nanoseconds of waiting for one, and turns."""


def wanted_s() -> float:
    """Seconds for which this thread has had a processor, or has waited for one where the system says so: on a crowded
    machine a replica may have far too much to do, and still get but half of a core.
    """
    try:
        had, waited, _ = map(int, SCHEDULER.read_text().split())
    except (OSError, ValueError):
        return time.thread_time()
    return (had + waited) / 1e9


class Vitals:
    """Looks at one replica again and again; belongs to the thread of its event loop."""

    def __init__(
        self,
        slo_s: float,
        clock: Callable[[], float] = time.monotonic,
        processor_s: Callable[[], float] = wanted_s,
    ) -> None:
        """`slo_s`: seconds that an answer may take. `processor_s`: seconds that this thread has wanted a processor."""
        self._slo_s, self._clock, self._processor_s = slo_s, clock, processor_s
        self._seen_at, self._used_s, self._ran_s = clock(), processor_s(), 0.0
        self._asked, self._arrived = 0, 0

    def sample(self, ran_s: float, backlog_s: float, asked: int, arrived: int) -> dict[str, float]:
        """What was since the last sample.

        `busy`: the share of time for which the event loop or the engine, whichever was busier, had work to do; 0 if
        nobody asked for anything, so that an application may go down to no replica at all.
        `late`: the time that all that waits now will take, over the latency objective.
        `arriving`: requests a second that have come for the engine.

        `ran_s`: seconds for which the engine has run in all; `backlog_s`: predicted seconds until nothing waits;
        `asked`: requests that have been answered in all; `arrived`: those that have come for the engine, whatever
        became of them.
        """
        now, used_s = self._clock(), self._processor_s()
        passed_s = max(now - self._seen_at, 1e-9)
        busy = max(used_s - self._used_s, ran_s - self._ran_s) / passed_s
        is_idle = (asked, ran_s) == (self._asked, self._ran_s) and not backlog_s
        arriving = max(0, arrived - self._arrived) / passed_s  # fewer than before when a version has gone
        self._seen_at, self._used_s, self._ran_s, self._asked, self._arrived = now, used_s, ran_s, asked, arrived
        return {"busy": 0.0 if is_idle else min(busy, 1.0), "late": backlog_s / self._slo_s, "arriving": arriving}
