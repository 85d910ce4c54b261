"""A decision in the making: the pool's books with the moves decided so far already written in.

`policy.decide` thinks in these few steps: grant what is free, claim what is being vacated, make a run yield, place
workers. Each keeps the books so that no later step can promise the same accelerator again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import itemgetter

from tidepool.pool.moves import Grant, Grow, Move, Park, Resume, Shrink, Withdraw
from tidepool.pool.state import EPSILON, App, Reservation, Run, Snapshot

Places = dict[str, int]
Offer = tuple[int, str, list[tuple[Run, int]]]


class Plan:
    """The books of one decision. `moves_per_minute` bounds the resizes of each run."""

    def __init__(self, pool: Snapshot, moves_per_minute: int, now: float) -> None:
        closing = {node.name for node in pool.nodes if node.closing}
        self.free = {node: amount for node, amount in pool.free.items() if node not in closing}
        self.vacating = {node: amount for node, amount in pool.vacating.items() if node not in closing}
        """Accelerators that leaving workers still hold and nobody was promised."""
        self.training = sum([run.size * run.per_worker for run in pool.runs])
        """Accelerators of all workers that stay."""
        self._runs, self._limit, self._now = pool.runs, moves_per_minute, now
        self._sorted: tuple[Mapping[str, int], list[Run]] = ({}, [])
        self._staying: dict[str, Places] = {}
        self._yielded: dict[str, tuple[Run, str]] = {}
        self._grown: dict[str, tuple[Run, Places, str]] = {}
        self._other: list[Move] = []

    def staying(self, run: Run) -> Mapping[str, int]:
        """Workers of a run that stay, by node, after the moves so far."""
        if run.name in self._staying:
            return self._staying[run.name]
        return run.staying if run.leaving else run.workers

    def size(self, run: Run) -> int:
        """Workers of a run that stay after the moves so far."""
        return sum(self._staying[run.name].values()) if run.name in self._staying else run.size

    def moves_left(self, run: Run) -> int:
        """Resizes that a run may still have this minute; one that this plan resizes already counts as resized."""
        used = sum([at > self._now - 60 for at in run.moved])
        return self._limit - used - (run.name in self._yielded or run.name in self._grown)

    def rested(self, run: Run, seconds: float) -> bool:
        """Whether a run may be resized without need: none under way, enough left for need, and none for `seconds`."""
        calm = run.state in ("running", "parked") and run.name not in self._staying
        return calm and self.moves_left(run) >= 2 and (not run.moved or self._now - run.moved[-1] >= seconds)

    def add(self, move: Move) -> None:
        """Write down a move that needs no room."""
        self._other.append(move)

    def withdraw(self, reservation: Reservation, why: str) -> None:
        """Take a promise back: its room is free, or unclaimed while it is being vacated."""
        node, awaited = reservation.node, reservation.awaited
        if node in self.free:
            self.free[node] += reservation.accelerators - awaited
            self.vacating[node] = self.vacating.get(node, 0.0) + awaited
        self.add(Withdraw(why, reservation.app, reservation.id))

    def grant(self, app: App, why: str) -> bool:
        """Promise a replica room that is free, or else room that is being vacated; False if no node has enough."""
        size = app.per_replica
        node = _tightest(self.free, size)
        if node is None:
            coming = {name: self.free[name] + amount for name, amount in self.vacating.items()}
            node = _tightest(coming, size)
        if node is None:
            return False
        awaited = max(0.0, size - self.free[node])
        self.free[node] -= size - awaited
        if awaited:
            self.vacating[node] -= awaited
        self.add(Grant(why, app.name, node, size, awaited))
        return True

    def give(self, run: Run, node: str, count: int, why: str) -> None:
        """Make `count` workers of a run on a node leave, or more where fewer can't: all of them below its minimum.

        A run's last resize of the minute goes to the bottom: nothing more can then be asked of it, so that the bound on
        resizes never stands in serving's way.
        """
        last = self.moves_left(run) == 1 and run.name not in self._yielded
        staying = dict(self.staying(run))
        size = sum(staying.values())
        to = size - count if size - count >= run.min_workers else 0
        if last and to:
            to = 0 if run.parkable else run.min_workers
        staying = _without(staying, node, count, size - to)
        self.training -= (size - to) * run.per_worker
        for name, before in self.staying(run).items():
            gone = before - staying.get(name, 0)
            if gone and name in self.free:
                self.vacating[name] = self.vacating.get(name, 0.0) + gone * run.per_worker
        self._staying[run.name] = staying
        self._yielded.setdefault(run.name, (run, why))

    def give_up(self, run: Run, count: int, why: str) -> None:
        """Make any `count` workers of a run leave: from the nodes where it has fewest."""
        for node, here in sorted(self.staying(run).items(), key=lambda place: (place[1], place[0])):
            leave = min(count, here, self.staying(run).get(node, 0))
            if leave:
                self.give(run, node, leave, why)
                count -= leave

    def make_room(self, app: App, bottoms: Mapping[str, int], why: str) -> bool:
        """Let runs yield, none below its bottom, until one node has room for a replica; False if none can have it.

        Of the nodes it takes the one that spares the most reluctant givers.
        """
        givers = self._givers(bottoms)
        offers = [offer for node in self.free if (offer := self._gather(node, app.per_replica, givers, bottoms))]
        if not offers:
            return False
        _, node, yields = min(offers, key=lambda offer: offer[:2])
        for run, count in yields:
            spare = f"{run.name} has {self.size(run) - bottoms[run.name]} workers to spare"
            self.give(run, node, count, f"{why}; {spare}, a pause of {run.costs.shrink_pause_s:g} s")
        return True

    def _givers(self, bottoms: Mapping[str, int]) -> list[Run]:
        """`givers_of` all runs, sorted once for one mapping of bottoms; those that have given all are left out."""
        known, givers = self._sorted
        if known is not bottoms:
            givers = givers_of(self, self._runs, bottoms)[::-1]
            self._sorted = bottoms, givers
        while givers and self.size(givers[-1]) <= bottoms[givers[-1].name]:
            givers.pop()
        return givers

    def _gather(self, node: str, size: float, givers: Sequence[Run], bottoms: Mapping[str, int]) -> Offer | None:
        """Who would yield to make room for `size` on a node: (rank of the last giver, node, workers of each)."""
        short = size - self.free[node] - self.vacating.get(node, 0.0)
        yields = []
        for rank, run in enumerate(reversed(givers)):
            here = min(self.staying(run).get(node, 0), self.size(run) - bottoms[run.name])
            if (count := min(here, math.ceil((short - EPSILON) / run.per_worker))) > 0:
                yields.append((run, count))
                short -= count * run.per_worker
            if short <= EPSILON:
                return rank, node, yields
        return None

    def place(self, run: Run, count: int, why: str) -> None:
        """Put up to `count` further workers of a run where room is free; none if it would stay under its minimum.

        The run's own nodes first, then the fullest: large holes stay for those that need them.
        """
        own = self.staying(run)
        places: Places = {}
        left = count
        for node in sorted(self.free, key=lambda name: (-own.get(name, 0), self.free[name])):
            fits = min(left, int((self.free[node] + EPSILON) / run.per_worker))
            if fits:
                places[node] = fits
                left -= fits
            if not left:
                break
        if not places or self.size(run) + count - left < run.min_workers:
            return
        self.training += (count - left) * run.per_worker
        for node, workers in places.items():
            self.free[node] -= workers * run.per_worker
        self._grown[run.name] = (run, places, why)
        self._staying[run.name] = {node: own.get(node, 0) + places.get(node, 0) for node in {**own, **places}}

    def moves(self) -> list[Move]:
        """Everything decided: who yields, then who is granted, then who grows."""
        yields: list[Move] = []
        for run, why in self._yielded.values():
            after = self._staying[run.name]
            places = {node: gone for node, was in run.staying.items() if (gone := was - after.get(node, 0))}
            to = sum(after.values())
            kind = Shrink if to else Park
            yields.append(kind(why, run.name, run.size, to, places, (run.size - to) * run.per_worker))
        grows: list[Move] = []
        for run, places, why in self._grown.values():
            more = sum(places.values())
            start = Grow if run.size else Resume
            grows.append(start(why, run.name, run.size, run.size + more, places, more * run.per_worker))
        return [*yields, *self._other, *grows]


def givers_of(plan: Plan, runs: Iterable[Run], bottoms: Mapping[str, int]) -> list[Run]:
    """Runs above their bottom in the order in which they give: lowest priority, cheapest pause, most to spare."""
    ranked = []
    for run in runs:
        spare = plan.size(run) - bottoms[run.name]
        if spare > 0:
            ranked.append((run.priority, run.costs.shrink_pause_s * run.size / spare, -spare, run.name, run))
    ranked.sort(key=itemgetter(0, 1, 2, 3))
    return [run for *_, run in ranked]


def _tightest(rooms: Mapping[str, float], size: float) -> str | None:
    """The node with the least room that is enough."""
    enough = [(room, node) for node, room in rooms.items() if room + EPSILON >= size]
    return min(enough)[1] if enough else None


def _without(staying: Places, node: str, count: int, gone: int) -> Places:
    """The workers that stay when `gone` leave: `count` of them from `node`, the rest from where there are fewest."""
    left = {**staying, node: staying[node] - count}
    gone -= count
    for name in sorted(staying, key=lambda name: (staying[name], name)):
        leave = min(left[name], gone)
        left[name] -= leave
        gone -= leave
    return {name: workers for name, workers in left.items() if workers}
