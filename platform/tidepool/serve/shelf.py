"""What is loaded when somebody asks for it, and put away when others need the room; the main path is `Shelf.held`.

Of each thing there is at most one load in the air, which all who ask for it wait for; loads of different things run
side by side. What somebody holds is never put away. Before a load there has to be room for what it is expected to take;
afterwards it counts with what it was measured to take. The least recently used goes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from tidepool.errors import DoesNotFit
from tidepool.serve.queueing import try_later
from tidepool.telemetry.sizes import shown

PATIENCE_S = 10.0
"""How long a load may wait for room, while all that is here is in use."""


class Loadable(Protocol):
    """A thing that can be on a shelf."""

    async def load(self) -> int:
        """Bring it here; returns the bytes that it takes, at least 1."""
        ...

    def put_away(self) -> None:
        """Let go of what `load` brought."""
        ...

    @property
    def expected(self) -> int:
        """The bytes that it is likely to take; 0 if nobody knows."""
        ...


@dataclass(slots=True, eq=False)
class Place:
    """What is known of one thing."""

    bytes: int = 0
    """That it takes; 0 while it isn't loaded."""
    pins: int = 0
    """Those who hold it, or wait for it."""
    loading: asyncio.Task[None] | None = None
    hits: int = 0
    """Times that it was there when it was asked for."""
    loads: int = 0
    load_s: float = 0.0
    """Seconds that all its loads took together, waiting for room included."""
    evictions: int = 0

    def to_json(self) -> dict[str, Any]:
        """For people."""
        counted = {"hits": self.hits, "loads": self.loads, "load_s": round(self.load_s, 4)}
        return {**counted, "evictions": self.evictions, "bytes": self.bytes, "in_use": self.pins}


class Shelf:
    """Room for `budget` bytes. Belongs to one event loop."""

    def __init__(
        self, budget: int, patience_s: float = PATIENCE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget
        self.used = 0
        """Bytes of all that is here."""
        self._patience_s, self._clock = patience_s, clock
        self._places: OrderedDict[Loadable, Place] = OrderedDict()
        """Least recently used first."""
        self._reserved = 0
        """Bytes for loads in the air."""
        self._line = asyncio.Lock()
        """Who needs room waits in it: first come, first served."""
        self._freed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def held(self, thing: Loadable) -> AsyncIterator[None]:
        """The thing is here for the length of a block.

        Raises:
            DoesNotFit: it takes more than the whole budget.
            TryLater: all that is here is in use, for too long.
            Exception: what `load` raised.
        """
        place = self._places.get(thing)
        if place is None:
            place = self._places[thing] = Place()
        self._places.move_to_end(thing)
        place.pins += 1
        try:
            if place.bytes:
                place.hits += 1
            else:
                await self._fetched(thing, place)
            yield
        finally:
            self._let_go(place)

    async def renew(self, thing: Loadable) -> None:
        """Load once more what is here, because it has changed; who holds it goes on meanwhile.

        Raises:
            Exception: what `load` raised; it counts with what it took before.
        """
        place = self._places.get(thing)
        if place is None:
            return
        place.pins += 1
        try:
            if place.loading is not None:
                await asyncio.wait({place.loading})
            if place.bytes:
                await self._fetched(thing, place)
        finally:
            self._let_go(place)

    def forget(self, thing: Loadable) -> None:
        """Put a thing away, whoever holds it, and forget what was done with it."""
        place = self._places.pop(thing, None)
        if place is not None and place.bytes:
            self._remove(thing, place)

    def has(self, thing: Loadable) -> bool:
        """Whether a thing is here, whole."""
        place = self._places.get(thing)
        return place is not None and place.bytes > 0

    def statistics(self, thing: Loadable) -> dict[str, Any]:
        """What was done with a thing."""
        return self._places.get(thing, Place()).to_json()

    async def _fetched(self, thing: Loadable, place: Place) -> None:
        if place.loading is None:
            # A task of its own: who asked first may go away, and others still want the outcome.
            place.loading = asyncio.create_task(self._fetch(thing, place))
            place.loading.add_done_callback(lambda task: self._loaded(place, task))
        await asyncio.shield(place.loading)

    async def _fetch(self, thing: Loadable, place: Place) -> None:
        began = self._clock()
        needed = max(0, thing.expected - place.bytes)
        if needed or not place.bytes:  # what is here already has its room
            await self._reserve(needed, place)
        try:
            size = await thing.load()
        finally:
            self._reserved -= needed
        self.used += size - place.bytes
        place.bytes = size
        place.loads += 1
        place.load_s += self._clock() - began
        if self._places.get(thing) is not place:
            self._remove(thing, place)  # it was forgotten meanwhile
        elif size > self.budget:
            self._remove(thing, place)
            raise too_large(size, self.budget)
        self._make_room(0)

    async def _reserve(self, needed: int, place: Place) -> None:
        if needed + place.bytes > self.budget:
            raise too_large(needed + place.bytes, self.budget)
        try:
            async with asyncio.timeout(self._patience_s), self._line:
                while not self._make_room(needed):
                    self._freed.clear()
                    await self._freed.wait()
        except TimeoutError:
            in_use = sum(place.bytes for place in self._places.values() if place.pins)
            seen = f"{in_use} bytes"
            raise try_later("all shared memory is in use by other models", 1.0, seen=seen) from None
        self._reserved += needed

    def _make_room(self, needed: int) -> bool:
        """Put away, least recently used first, what nobody holds, until there is room; False if there isn't."""
        over = self.used + self._reserved + needed - self.budget
        for thing in (
            [thing for thing, place in self._places.items() if place.bytes and not place.pins] if over > 0 else ()
        ):
            place = self._places[thing]
            over -= place.bytes
            place.evictions += 1
            self._remove(thing, place)
            if over <= 0:
                break
        return over <= 0

    def _remove(self, thing: Loadable, place: Place) -> None:
        self.used -= place.bytes
        place.bytes = 0
        self._freed.set()
        thing.put_away()

    def _let_go(self, place: Place) -> None:
        place.pins -= 1
        if not place.pins:
            self._make_room(0)
            self._freed.set()

    def _loaded(self, place: Place, task: asyncio.Task[None]) -> None:
        place.loading = None
        self._freed.set()
        if not task.cancelled():
            task.exception()  # those who waited have it, if any still did


def too_large(size: int, budget: int) -> DoesNotFit:
    """The error of what is larger than the whole shelf, in bytes."""
    return DoesNotFit(
        "the model is larger than the memory of all shared models together",
        seen=shown(size),
        allowed=shown(budget),
        remedy="raise TIDEPOOL_SHARED_MB and deploy it again, or give it serve.placement: dedicated",
    )
