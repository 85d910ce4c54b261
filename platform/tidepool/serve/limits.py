"""How much a key may ask: a rate with a burst, and a quota a day.

The rate is a token bucket in the form of the generic cell rate algorithm (ITU-T I.371): one number a key, the time at
which its bucket will be full again. A request is checked against numbers in this replica's memory, in about a
microsecond and without waiting for anybody. Replicas tell each other what they let through by way of `tallies`, a few
times a second: in between each goes by what it knows, and what was let through in excess is in everybody's buckets
afterwards, so that a rate holds in the long run whatever the number of replicas.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tidepool.errors import SpecError
from tidepool.serve.queueing import try_later

DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Limit:
    """What one key may ask."""

    per_second: float | None = None
    """Requests a second in the long run; None for no limit."""
    burst: int = 1
    """Requests that may come at once."""
    per_day: int | None = None
    """Requests a day, from midnight to midnight UTC; None for no limit."""

    def __post_init__(self) -> None:
        if (self.per_second is not None and self.per_second <= 0) or self.burst < 1 or (self.per_day or 0) < 0:
            raise SpecError("a limit needs a rate over 0, a burst of 1 or more and a quota of 0 or more", seen=self)

    def __str__(self) -> str:
        rate = f"{self.per_second:g}/s, {self.burst} at once" if self.per_second is not None else ""
        return ", ".join(filter(None, [rate, f"{self.per_day}/day" if self.per_day is not None else ""]))


@dataclass(frozen=True, slots=True)
class Use:
    """What one replica let through of one key since it told last."""

    requests: int
    seconds: float
    """By which its bucket will be full later: requests / rate."""
    day: int
    """Since the epoch, in UTC."""


@dataclass(frozen=True, slots=True)
class Total:
    """What all replicas let through of one key."""

    full_in_s: float
    """Until its bucket is full."""
    day: int
    requests: int
    """On that day."""


@dataclass(slots=True)
class _Meter:
    """One key's numbers in this replica."""

    full_at: float = 0.0
    day: int = 0
    requests: int = 0
    """On that day, by all replicas as far as they are known."""
    untold: int = 0
    """Of these, those let through here since the last telling."""
    seconds: float = 0.0
    """Of the untold, as in `Use`."""
    is_fresh: bool = True
    """Whether the key has asked since the last telling."""


class Limits:
    """Refuses what is over a key's limit."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._meters: dict[str, _Meter] = {}
        self.shared = True
        """Whether the last telling reached the other replicas; if not, each counts for itself."""

    def check(self, key: str, limit: Limit) -> None:
        """Count one request of `key`.

        Raises:
            TryLater: over the rate or the quota; `retry_after_s` is when the next one will be let through.
        """
        now = self._clock()
        meter = self._meters.get(key)
        if meter is None:
            meter = self._meters[key] = _Meter()
        meter.is_fresh = True
        day = int(now // DAY_S)
        if day != meter.day:
            meter.day, meter.requests, meter.untold = day, 0, 0
        if limit.per_day is not None and meter.requests >= limit.per_day:
            raise try_later(
                "the key's quota is used up",
                DAY_S - now % DAY_S,
                seen=f"key {key}",
                allowed=f"{limit.per_day} requests a day ({self._whose})",
            )
        if limit.per_second is not None:
            meter.full_at, wait_s = bucket(meter.full_at, limit.per_second, limit.burst, now)
            if wait_s > 0:
                allowed = f"{limit.per_second:g} requests/s, {limit.burst} at once ({self._whose})"
                raise try_later("the key's rate limit is reached", wait_s, seen=f"key {key}", allowed=allowed)
            meter.seconds += 1 / limit.per_second
        meter.requests += 1
        meter.untold += 1

    def tell(self) -> dict[str, Use]:
        """What was let through since the last call, of each key that has asked since."""
        uses = {}
        for key, meter in self._meters.items():
            if meter.is_fresh:
                uses[key] = Use(meter.untold, meter.seconds, meter.day)
                meter.untold, meter.seconds, meter.is_fresh = 0, 0.0, False
        return uses

    def take_back(self, uses: Mapping[str, Use]) -> None:
        """What `tell` gave has reached nobody: give it again the next time."""
        self.shared = False
        for key, use in uses.items():
            meter = self._meters[key]
            meter.seconds, meter.is_fresh = meter.seconds + use.seconds, True
            meter.untold += use.requests if use.day == meter.day else 0

    def hear(self, totals: Mapping[str, Total]) -> None:
        """Go by what all replicas let through, and what was let through here since it was told."""
        self.shared, now = True, self._clock()
        for key, total in totals.items():
            meter = self._meters[key]
            meter.full_at = now + total.full_in_s + meter.seconds
            if total.day == meter.day:
                meter.requests = total.requests + meter.untold

    @property
    def _whose(self) -> str:
        return "of all replicas together" if self.shared else "of each replica"


def bucket(full_at: float, per_second: float, burst: int, now: float) -> tuple[float, float]:
    """Take one token: (when the bucket will be full, 0), or (as it was, seconds until there is a token)."""
    full_at = max(full_at, now)
    after = full_at + 1 / per_second
    wait_s = after - now - burst / per_second
    return (full_at, wait_s) if wait_s > 1e-9 else (after, 0.0)
