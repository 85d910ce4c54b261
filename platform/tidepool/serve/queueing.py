"""The bounded queue in front of an engine: who goes next, and who is refused at once.

Higher priority goes first. Within a priority, API keys share the engine by start-time fair queueing (Goyal, Vin and
Cheng, 1996): the key whose work began earliest in virtual time is served, and each request moves its key on by the
request's size, which is proportional to its measured cost. Within a key, the earliest deadline goes first.

A request is refused with `TryLater` where the learned cost of the work ahead says that its deadline can't be met, or
where the queue is full; but a full queue makes room at the expense of the key that fills it, and of lower priorities.
Nothing here knows a clock, a lock or an event loop: times are arguments.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Any, Generic, TypeVar

from tidepool.errors import TryLater

LOOKAHEAD = 256
"""Requests of one key that are looked at in search of one that fits a batch."""
IDLE_FLOWS = 64
"""Keys without waiting requests that a priority remembers; more are forgotten once they owe nothing."""


def try_later(what: str, retry_after_s: float, *, seen: object = None, allowed: object = None) -> TryLater:
    """A refusal that says when to come back."""
    remedy = f"try again in {max(retry_after_s, 0.001):.3f} s"
    error = TryLater(what, seen=seen, allowed=allowed, remedy=remedy)
    error.retry_after_s = retry_after_s
    return error


@dataclass(slots=True, eq=False)
class Ticket:
    """A waiting request."""

    size: int
    """What it adds to a batch's size."""
    bytes: int = 0
    deadline: float = math.inf
    """When its answer is due, on the clock of the `now` arguments."""
    priority: int = 0
    """Higher goes first."""
    key: str = ""
    """Who shares fairly: the id of the API key."""
    group: Any = None
    """Only equal groups share a batch."""
    place: tuple[float, int] = (0.0, 0)
    """Set by the queue: the most urgent has the greatest."""


T = TypeVar("T", bound=Ticket)


@dataclass(slots=True, eq=False)
class _Flow(Generic[T]):
    """One key's waiting requests at one priority, the most urgent last."""

    start: float
    """Virtual time at which its next request begins."""
    entries: list[tuple[float, int, T]] = field(default_factory=list)
    size: int = 0
    in_heap: bool = False


@dataclass(slots=True, eq=False)
class _Level(Generic[T]):
    """All keys of one priority."""

    flows: dict[str, _Flow[T]] = field(default_factory=dict)
    heap: list[tuple[float, int, _Flow[T]]] = field(default_factory=list)
    now: float = 0.0
    """Virtual time: the start of what was served last."""
    size: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """What an engine and its queue have on their hands."""

    requests: int
    """Requests that wait."""
    bytes: int
    """The size of their inputs."""
    seconds: float
    """Predicted time until all that is here now is answered."""


class FairQueue(Generic[T]):
    """Holds at most `max_requests` tickets of at most `max_bytes` together; `drain(size)` predicts seconds.

    A place is found in O(log n) comparisons; making room in a full queue looks at each waiting key once.
    """

    def __init__(self, drain: Callable[[int], float], max_requests: int, max_bytes: int) -> None:
        self._drain, self._max_requests, self._max_bytes = drain, max_requests, max_bytes
        self._levels: dict[int, _Level[T]] = {}
        self._priorities: list[int] = []
        self._serial = count()
        self.size, self.bytes, self._length = 0, 0, 0

    def __len__(self) -> int:
        return self._length

    def push(self, ticket: T, now: float, busy_s: float = 0.0) -> list[T]:
        """Let a ticket wait; returns the ticket that had to leave for it, if any. `busy_s`: until the engine is free.

        In front of an idle engine any deadline is taken: what the run will measure may prove the prediction wrong.

        Raises:
            TryLater: its deadline can't be met, or the queue is full; nothing has changed then.
        """
        place = (-ticket.deadline, -next(self._serial))
        if ticket.deadline < math.inf and (self._length or busy_s > 0):
            late_s = now + busy_s + self._drain(self._ahead(ticket, place) + ticket.size) - ticket.deadline
            if late_s > 0:
                raise try_later("the deadline can't be met: too much work waits", late_s, seen=f"{late_s:.3f} s late")
        gone = self._make_room(ticket, busy_s)
        ticket.place = place
        level = self._levels.get(ticket.priority)
        if level is None:
            level = self._levels[ticket.priority] = _Level()
            insort(self._priorities, ticket.priority, key=lambda priority: -priority)
        flow = level.flows.setdefault(ticket.key, _Flow(level.now))
        if not flow.entries:
            flow.start = max(flow.start, level.now)
        insort(flow.entries, (*place, ticket))
        self._count(ticket, level, flow, 1)
        if not flow.in_heap:
            flow.in_heap = True
            heappush(level.heap, (flow.start, next(self._serial), flow))
        return gone

    def take(self, limit: int, ready: float = -math.inf) -> tuple[list[T], list[T]]:
        """The next batch, of one group and at most `limit` in size unless its first alone is larger; and the late ones.

        Late are those met whose deadline is before `ready`, when the batch is going to be answered: they are out of
        the queue and should be refused.
        """
        batch: list[T] = []
        late: list[T] = []
        for priority in list(self._priorities):
            level = self._levels[priority]
            aside = []
            while level.heap:
                flow = level.heap[0][2]
                at = self._pick(level, flow, batch, limit, ready, late)
                if at is None:
                    aside.append(heappop(level.heap))
                    continue
                ticket = flow.entries.pop(at)[2]
                self._count(ticket, level, flow, -1)
                batch.append(ticket)
                limit -= ticket.size
                level.now = flow.start
                flow.start += ticket.size
                heapreplace(level.heap, (flow.start, next(self._serial), flow))
                if limit <= 0:
                    break
            for entry in aside:
                entry[2].in_heap = bool(entry[2].entries)
                if entry[2].in_heap:
                    heappush(level.heap, entry)
            self._tidy(priority, level)
            if limit <= 0:
                break
        return batch, late

    def remove(self, ticket: T) -> bool:
        """Take out a ticket that nobody waits for any more; False if it isn't in the queue."""
        level = self._levels.get(ticket.priority)
        flow = level.flows.get(ticket.key) if level else None
        if level is None or flow is None:
            return False
        at = bisect_left(flow.entries, ticket.place, key=lambda entry: entry[:2])
        if at == len(flow.entries) or flow.entries[at][2] is not ticket:
            return False
        del flow.entries[at]
        self._count(ticket, level, flow, -1)
        self._tidy(ticket.priority, level)
        return True

    def _pick(
        self, level: _Level[T], flow: _Flow[T], batch: list[T], limit: int, ready: float, late: list[T]
    ) -> int | None:
        """Where this key's next ticket for the batch is; on the way, late ones leave."""
        while flow.entries and flow.entries[-1][2].deadline < ready:
            ticket = flow.entries.pop()[2]
            self._count(ticket, level, flow, -1)
            late.append(ticket)
        last = len(flow.entries) - 1
        if not batch:
            return last if last >= 0 else None
        for at in range(last, max(last - LOOKAHEAD, -1), -1):
            ticket = flow.entries[at][2]
            if ticket.size <= limit and ticket.group == batch[0].group:
                return at
        return None

    def _ahead(self, ticket: T, place: tuple[float, int]) -> int:
        """The size of the work that goes before a newcomer.

        That is all of higher priority, what is more urgent under its own key, and, of each other key, no more than
        the newcomer's key gets until then.
        """
        above = 0
        for priority in self._priorities:
            if priority <= ticket.priority:
                break
            above += self._levels[priority].size
        level = self._levels.get(ticket.priority)
        if level is None:
            return above
        own, own_size = 0, 0
        flow = level.flows.get(ticket.key)
        if flow is not None and flow.entries:
            urgent = len(flow.entries) - bisect_left(flow.entries, place, key=lambda entry: entry[:2])
            own_size = flow.size
            own = own_size * urgent // len(flow.entries)
        others = len(level.heap) - (own_size > 0)
        return above + own + min(level.size - own_size, others * (own + ticket.size))

    def _make_room(self, ticket: T, busy_s: float) -> list[T]:
        """One out for one in, if need be and if fair; an empty queue takes anything."""
        over = self.bytes + ticket.bytes - self._max_bytes
        if not self._length or (self._length < self._max_requests and over <= 0):
            return []
        victim = self._victim(ticket)
        if victim is None or victim.bytes < over:
            raise try_later(
                "the queue is full",
                busy_s + self._drain(max(self.size // 2, 1)),
                seen=f"{self._length} requests, {self.bytes} bytes",
                allowed=f"{self._max_requests} requests, {self._max_bytes} bytes",
            )
        self.remove(victim)
        return [victim]

    def _victim(self, ticket: T) -> T | None:
        """The least urgent of the fullest key of the lowest priority, if it has more than the newcomer's key would."""
        if not self._priorities or self._priorities[-1] > ticket.priority:
            return None
        level = self._levels[self._priorities[-1]]
        fullest = max(level.flows.values(), key=lambda flow: flow.size)
        if self._priorities[-1] == ticket.priority:
            own = level.flows.get(ticket.key)
            if fullest is own or fullest.size <= (own.size if own else 0) + ticket.size:
                return None
        return fullest.entries[0][2]

    def _count(self, ticket: T, level: _Level[T], flow: _Flow[T], sign: int) -> None:
        flow.size += sign * ticket.size
        level.size += sign * ticket.size
        self.size += sign * ticket.size
        self.bytes += sign * ticket.bytes
        self._length += sign

    def _tidy(self, priority: int, level: _Level[T]) -> None:
        """Forget what waits no more: a priority without tickets, keys that owe nothing."""
        if level.size == 0:
            del self._levels[priority]
            self._priorities.remove(priority)
        elif len(level.flows) > len(level.heap) + IDLE_FLOWS:
            level.flows = {key: flow for key, flow in level.flows.items() if flow.in_heap or flow.start > level.now}
