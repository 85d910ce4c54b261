"""Answers that are kept: an LRU cache bounded in bytes, with single flight.

A model is a function, so equal inputs to the same version have equal answers. The version's digest is part of the key:
after a promotion no key of the old version is ever asked for again, and a rollback finds its answers still there.
Identical requests in the air at one time are computed once: the first leads and the others follow. A leader that is
cancelled, or refused for its own deadline's sake, hands over to a follower; errors are never kept.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tidepool import storage
from tidepool.errors import Overloaded
from tidepool.serve.codecs import to_raw
from tidepool.serve.protocol import Tensors
from tidepool.serve.stacking import weight

DELIVERY = frozenset({"binary_data_output", "key", "priority", "timeout"})
"""Request parameters that say how, when and to whom to answer, not what; every other one is taken to matter."""
ENTRY_BYTES = 400
"""What an entry takes beside its arrays: key, dictionaries, array headers."""

Key = bytes


def cache_key(model: str, digest: str, inputs: Tensors, parameters: Mapping[str, Any] | None = None) -> Key:
    """Equal for requests with equal answers, whatever the order of their inputs, 16 bytes of BLAKE2b."""
    matter = {name: value for name, value in (parameters or {}).items() if name not in DELIVERY}
    parts: list[Any] = [storage.canonical_json([model, digest, matter])]
    for name in sorted(inputs):
        values = inputs[name]
        data = to_raw(values) if values.dtype == np.object_ else np.ascontiguousarray(values).reshape(-1)
        parts += [f"{name}|{values.dtype.str}|{values.shape}".encode(), data]
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        hasher.update(len(part).to_bytes(8, "little"))  # so that no two lists of parts look alike
        hasher.update(part)
    return hasher.digest()


@dataclass(slots=True)
class CacheStatistics:
    """Counts since the start, and what the cache holds now."""

    hits: int = 0
    misses: int = 0
    followed: int = 0
    """Requests answered by an identical one that was in the air."""
    evicted: int = 0
    entries: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Flight:
    """A computation in the air; a follower is told the answer, or None: to lead."""

    followers: deque[asyncio.Future[Tensors | None]] = field(default_factory=deque)


class Cache:
    """Keeps the most recently used answers within `max_bytes`. Belongs to one event loop."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, tuple[Tensors, int]] = OrderedDict()
        self._flights: dict[Key, _Flight] = {}
        self.statistics = CacheStatistics()

    async def get(self, key: Key, compute: Callable[[], Awaitable[Tensors]]) -> Tensors:
        """The answer for `key`, computed if need be. Its arrays are shared and read-only.

        Raises:
            Exception: what `compute` raised.
        """
        kept = self._entries.get(key)
        if kept is not None:
            self._entries.move_to_end(key)
            self.statistics.hits += 1
            return kept[0]
        flight = self._flights.get(key)
        if flight is None:
            self.statistics.misses += 1
            flight = self._flights[key] = _Flight()
        else:
            answer = await self._follow(key, flight)
            if answer is not None:
                self.statistics.followed += 1
                return answer
        return await self._lead(key, flight, compute)

    async def _lead(self, key: Key, flight: _Flight, compute: Callable[[], Awaitable[Tensors]]) -> Tensors:
        try:
            answer = {name: _frozen(values) for name, values in (await compute()).items()}
        except (asyncio.CancelledError, Overloaded):
            self._hand_over(key, flight)
            raise
        except BaseException as error:
            del self._flights[key]
            for follower in _waiting(flight):
                follower.set_exception(error)
            raise
        del self._flights[key]
        self._keep(key, answer)
        for follower in _waiting(flight):
            follower.set_result(answer)
        return answer

    async def _follow(self, key: Key, flight: _Flight) -> Tensors | None:
        told: asyncio.Future[Tensors | None] = asyncio.get_running_loop().create_future()
        flight.followers.append(told)
        try:
            return await told
        except asyncio.CancelledError:
            if told.done() and not told.cancelled() and told.exception() is None and told.result() is None:
                self._hand_over(key, flight)  # cancelled between being told to lead and hearing it
            raise

    def _hand_over(self, key: Key, flight: _Flight) -> None:
        while flight.followers:
            follower = flight.followers.popleft()
            if not follower.done():
                follower.set_result(None)
                return
        del self._flights[key]

    def _keep(self, key: Key, answer: Tensors) -> None:
        statistics, size = self.statistics, weight(answer) + ENTRY_BYTES
        if size > self._max_bytes:
            return
        self._entries[key] = (answer, size)
        statistics.bytes += size
        while statistics.bytes > self._max_bytes:
            statistics.bytes -= self._entries.popitem(last=False)[1][1]
            statistics.evicted += 1
        statistics.entries = len(self._entries)


def _frozen(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array, read-only; copied if it is a view, which would keep the whole batch in memory."""
    values = values if values.base is None else values.copy()
    values.setflags(write=False)
    return values


def _waiting(flight: _Flight) -> list[asyncio.Future[Tensors | None]]:
    return [follower for follower in flight.followers if not follower.done()]
