"""What each API key has used, over all replicas of a cluster.

One detached actor, the `TallyKeeper`, adds up what replicas let through. `share` runs in each replica: a few times a
second it tells what came since, and hears what all let through together. Where no key with a limit asks, no message
is sent. While the actor can't be reached each replica counts for itself, and tells later.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson

from tidepool import storage
from tidepool.errors import StorageError
from tidepool.serve.limits import DAY_S, Limits, Total, Use
from tidepool.settings import Settings

log = logging.getLogger(__name__)

NAME, NAMESPACE = "tidepool-tallies", "tidepool"
EVERY_S = 0.2
"""Seconds between two tellings: for so long a replica may not know what others let through."""
SAVE_S = 5.0
"""Seconds between two writings of the day's counts: so much is forgotten when the head node dies."""
RETRY_S = 2.0

Uses = dict[str, Use]
Totals = dict[str, Total]


class TallyKeeper:
    """The actor's class: adds up. The day's counts are kept in a file, so that a restart gives nobody a new quota."""

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path or Settings().quotas_file, clock
        self._full_at: dict[str, float] = {}
        self._saved_at = clock()
        self._day, self._requests = self._load()

    def add(self, uses: Uses) -> Totals:
        """Count what a replica let through; returns what all of them have, of the same keys."""
        now = self._clock()
        today = int(now // DAY_S)
        if today > self._day:
            self._day, self._requests = today, {}
        totals = {}
        for key, use in uses.items():
            full_at = max(self._full_at.get(key, 0.0), now) + use.seconds
            self._full_at[key] = full_at
            requests = self._requests.get(key, 0) + (use.requests if use.day == self._day else 0)
            self._requests[key] = requests
            totals[key] = Total(full_at - now, self._day, requests)
        if now - self._saved_at >= SAVE_S:
            self._saved_at = now
            self._save()
        return totals

    def _save(self) -> None:
        try:
            storage.write_json(self._path, {"day": self._day, "requests": self._requests}, mode=0o600)
        except StorageError as error:
            log.warning("today's counts would be forgotten now: %s", error)

    def _load(self) -> tuple[int, dict[str, int]]:
        try:
            document = orjson.loads(self._path.read_bytes())
            return int(document["day"]), dict(document["requests"])
        except FileNotFoundError:
            return 0, {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("today's counts begin anew, %s can't be read: %s", self._path, error)
            return 0, {}


def keeper() -> Any:
    """The handle of the actor, which is started on the head node if it isn't running."""
    import ray

    options = {
        "name": NAME,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "resources": {"node:__internal_head__": 0.001},
    }
    return ray.remote(TallyKeeper).options(**options).remote()


def teller() -> Callable[[Uses], Awaitable[Totals]]:
    """Tells the actor; looks it up once."""
    actor = keeper()

    async def add(uses: Uses) -> Totals:
        totals: Totals = await actor.add.remote(uses)
        return totals

    return add


async def share(limits: Limits, add: Callable[[Uses], Awaitable[Totals]], every_s: float = EVERY_S) -> None:
    """Tell what this replica lets through, and hear what all do, for ever; a failure is logged and tried again."""
    while True:
        await asyncio.sleep(every_s)
        uses = limits.tell()
        if not uses:
            continue
        try:
            limits.hear(await asyncio.wait_for(add(uses), RETRY_S))
        except Exception as error:
            limits.take_back(uses)
            log.warning("limits are counted for each replica for the time being: %s", error or type(error).__name__)
            await asyncio.sleep(RETRY_S)
