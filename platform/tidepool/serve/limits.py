"""How much a key may ask: a rate with a burst, and a quota a day.

The rate is a token bucket in the form of the generic cell rate algorithm (ITU-T I.371): one number a key, the time at
which its bucket will be full again. Counts live in a `Store`. `LocalStore` is this replica's alone, so that n replicas
together let n times as much through; a store that replicas share makes the limits whole. `Limits.scope` says which.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from tidepool.errors import SpecError
from tidepool.serve.queueing import try_later

DAY_S = 86_400

Scope = Literal["replica", "installation"]


@dataclass(frozen=True, slots=True)
class Limit:
    """What one key may ask of one model."""

    per_second: float | None = None
    """Requests a second in the long run; None for no limit."""
    burst: int = 1
    """Requests that may come at once."""
    per_day: int | None = None
    """Requests a day, from midnight to midnight UTC; None for no limit."""

    def __post_init__(self) -> None:
        if (self.per_second is not None and self.per_second <= 0) or self.burst < 1 or (self.per_day or 0) < 0:
            raise SpecError("a limit needs a rate over 0, a burst of 1 or more and a quota of 0 or more", seen=self)


class Store(Protocol):
    """Where the counts live. Each call is one atomic step."""

    scope: Scope

    async def take(self, key: str, per_second: float, burst: int, now: float) -> float:
        """Take one request from the bucket of `key`: 0 if it was there, else seconds until it is (nothing taken)."""
        ...

    async def count(self, key: str, day: int, per_day: int) -> bool:
        """Count one request on `day` (since the epoch); False if the quota is used up (nothing counted)."""
        ...


class LocalStore:
    """Counts in the memory of this replica."""

    scope: Scope = "replica"

    def __init__(self) -> None:
        self._full_at: dict[str, float] = {}
        self._day, self._counts = 0, dict[str, int]()

    async def take(self, key: str, per_second: float, burst: int, now: float) -> float:
        """As `Store.take`."""
        full_at, wait_s = bucket(self._full_at.get(key, 0.0), per_second, burst, now)
        self._full_at[key] = full_at
        return wait_s

    async def count(self, key: str, day: int, per_day: int) -> bool:
        """As `Store.count`."""
        if day != self._day:
            self._day, self._counts = day, {}
        used = self._counts.get(key, 0)
        if used >= per_day:
            return False
        self._counts[key] = used + 1
        return True


class Limits:
    """Refuses what is over a key's limit."""

    def __init__(self, store: Store | None = None, clock: Callable[[], float] = time.time) -> None:
        self._store: Store = store or LocalStore()
        self._clock = clock
        self.scope = self._store.scope

    async def check(self, key: str, limit: Limit) -> None:
        """Count one request of `key`.

        Raises:
            TryLater: over the rate or the quota; `retry_after_s` is when the next one will be let through.
        """
        now = self._clock()
        where = f" (counted for each {self.scope})"
        if limit.per_second is not None:
            wait_s = await self._store.take(key, limit.per_second, limit.burst, now)
            if wait_s > 0:
                allowed = f"{limit.per_second:g} requests/s, {limit.burst} at once{where}"
                raise try_later("the key's rate limit is reached", wait_s, seen=f"key {key}", allowed=allowed)
        if limit.per_day is not None:
            day, of_day_s = divmod(now, DAY_S)
            if not await self._store.count(key, int(day), limit.per_day):
                allowed = f"{limit.per_day} requests a day{where}"
                raise try_later("the key's quota is used up", DAY_S - of_day_s, seen=f"key {key}", allowed=allowed)


def bucket(full_at: float, per_second: float, burst: int, now: float) -> tuple[float, float]:
    """Take one token: (when the bucket will be full, 0), or (as it was, seconds until there is a token)."""
    full_at = max(full_at, now)
    after = full_at + 1 / per_second
    wait_s = after - now - burst / per_second
    return (full_at, wait_s) if wait_s > 1e-9 else (after, 0.0)
