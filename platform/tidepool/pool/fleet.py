"""A simulated pool: training jobs and applications that move as `policy.decide` says, tick by tick.

Jobs end at their exact second; arrivals, traffic and decisions count in ticks of some seconds. A hand-over is over
before the next tick. All accelerators are on one node: the simulator knows no fragmentation.
"""

from __future__ import annotations

import bisect
import heapq
from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from tidepool.pool.demand import Demand
from tidepool.pool.moves import Grant, Move, Resize
from tidepool.pool.policy import PolicySpec, decide
from tidepool.pool.staffing import Staffing
from tidepool.pool.state import LIVE, SEGMENTS, App, Costs, Node, Run, Snapshot

Floats = npt.NDArray[np.float64]

NODE = "pool"
WAITING = 200
"""Waiting jobs that a decision looks at, oldest first; those behind them could not start anyway."""
RELEASE_AFTER_S = 120.0
"""An application keeps replicas that it doesn't want any more for so long."""
DRAIN_S = 10.0
"""Requests that wait are to be answered within so many seconds: adds to the replicas wanted."""


@dataclass(frozen=True)
class Physics:
    """How long things take, and what a job can do. Durations in seconds."""

    live: Costs = LIVE
    """Of resizing an elastic job."""
    segments: Costs = SEGMENTS
    """Of starting and stopping another."""
    start_s: float = 3.0
    """From holding an accelerator to a replica's first answer."""
    release_after_s: float = RELEASE_AFTER_S
    scaling: float = 0.9
    """w workers train as fast as (w / asked) ** scaling times what was asked for."""
    elastic_from: float = 1
    """A job that asks for so many accelerators or more may have from one to twice as many; others have all or none."""
    yields: bool = True
    """Whether a job that must stop saves its state; else it falls back to its last checkpoint."""
    checkpoint_every_s: float = 1800.0
    parkable: bool = True


@dataclass
class Job:
    """A training job. Work is in seconds on as many workers as were asked for."""

    arrived: float
    asked: int
    work: float
    workers: int = 0
    seen: float = 0.0
    """When `work` was last brought up to date; later than now while the job is paused."""
    started: float | None = None
    began: float = 0.0
    """When its latest stretch of work began."""
    waiting: float = 0.0
    ended: float | None = None
    moved: tuple[float, ...] = ()
    turn: int = 0
    """Which of its foreseen ends is the valid one."""
    run: Run | None = None
    """What the policy sees of it, until it changes."""


@dataclass
class Service:
    """An application: what it holds, wants and owes."""

    staffing: Staffing
    replicas: int = 0
    wanted: int = 0
    starting: list[tuple[float, int]] = field(default_factory=list)
    """(ready when, how many), part of `replicas`."""
    wishes: deque[tuple[float, int]] = field(default_factory=deque)
    """(when, replicas), falling: the largest wishes that still count."""
    backlog: float = 0.0
    requests: float = 0.0
    late: float = 0.0


class Fleet:
    """Jobs and services on `total` accelerators. `tick` moves everything on; `jobs` and `services` are the outcome."""

    def __init__(self, total: int, services: list[Service], physics: Physics, spec: PolicySpec) -> None:
        self.total, self.services, self._physics, self._spec = total, services, physics, spec
        self.jobs: list[Job] = []
        self.moves: Counter[str] = Counter()
        self.training = 0
        """Accelerators that training holds."""
        self.paused = 0.0
        """Accelerator-seconds for which training stood still."""
        self.redone = 0.0
        """Accelerator-seconds of work that was lost and done again."""
        self._running: dict[int, Job] = {}
        self._waiting: list[int] = []
        self._ends: list[tuple[float, int, int]] = []
        self._demand = Demand()

    @property
    def serving(self) -> int:
        """Accelerators that serving holds."""
        return sum(service.replicas for service in self.services)

    @property
    def active(self) -> bool:
        """Whether any job is not over."""
        return bool(self._running or self._waiting)

    @property
    def late(self) -> float:
        """Share of all requests so far that missed the SLO."""
        requests = sum(service.requests for service in self.services)
        return sum(service.late for service in self.services) / requests if requests else 0.0

    def submit(self, arrived: float, asked: float, work: float) -> None:
        """A job arrives: it asks for so many accelerators and would need `work` seconds on them."""
        self._waiting.append(len(self.jobs))
        self.jobs.append(Job(arrived, int(asked), work, seen=arrived))

    def tick(self, now: float, expected: Floats, seen: Floats, tick_s: float, share: bool) -> None:
        """One tick from `now` on. Rates in requests a second, an element an application.

        `expected` is what the forecast says, `seen` what then comes. Runs share anew if `share`; they yield to serving
        in any tick.
        """
        self._end_jobs(now)
        for service, rate in zip(self.services, expected, strict=True):
            self._wish(service, float(rate), now)
        self._demand = self._demand.then(now, float(sum(service.wanted for service in self.services)))
        lacking = any(service.wanted > service.replicas for service in self.services)
        if lacking or share:
            for move in decide(self._snapshot(), self._spec, now):
                self._apply(move, now)
        for service, rate in zip(self.services, seen, strict=True):
            _answer(service, float(rate), now, tick_s)

    def _wish(self, service: Service, rate: float, now: float) -> None:
        """What the application wants for this rate and for what waits; replicas long unwanted it releases."""
        service.wanted = wanted = service.staffing.replicas(rate + service.backlog / DRAIN_S)
        while service.wishes and service.wishes[-1][1] <= wanted:
            service.wishes.pop()
        service.wishes.append((now, wanted))
        while service.wishes[0][0] < now - self._physics.release_after_s:
            service.wishes.popleft()
        service.replicas = min(service.replicas, service.wishes[0][1])

    def _snapshot(self) -> Snapshot:
        apps = tuple(
            App(str(index), service.wanted, {NODE: service.replicas} if service.replicas else {})
            for index, service in enumerate(self.services)
        )
        runs = [job.run or self._run(index, job) for index, job in self._running.items()]
        runs += [job.run or self._run(index, job) for index in self._waiting[:WAITING] if (job := self.jobs[index])]
        return Snapshot((Node(NODE, self.total),), apps, tuple(runs), demand=self._demand)

    def _run(self, index: int, job: Job) -> Run:
        """What the policy sees of a job; the same until it changes."""
        elastic = self._is_elastic(job)
        job.run = Run(
            f"{index:07}",
            min_workers=1 if elastic else job.asked,
            max_workers=2 * job.asked if elastic else job.asked,
            workers={NODE: job.workers} if job.workers else {},
            parkable=self._physics.parkable,
            weight=job.asked,
            since=job.arrived,
            costs=self._costs(job),
            moved=job.moved,
        )
        return job.run

    def _apply(self, move: Move, now: float) -> None:
        """Carry out a move: every hand-over is over before the next tick."""
        self.moves[move.kind] += 1
        if isinstance(move, Grant):
            service, release_s = self.services[int(move.app)], self._physics.live.release_s if move.awaited else 0.0
            service.replicas += 1
            service.starting.append((now + self._physics.start_s + release_s, 1))
        elif isinstance(move, Resize):
            costs = self._costs(self.jobs[int(move.run)])
            pause = costs.shrink_pause_s if move.to < move.was else costs.grow_pause_s
            self._resize(int(move.run), move.to, now, pause)

    def _is_elastic(self, job: Job) -> bool:
        return job.asked >= self._physics.elastic_from

    def _costs(self, job: Job) -> Costs:
        return self._physics.live if self._is_elastic(job) else self._physics.segments

    def _resize(self, index: int, workers: int, now: float, pause: float) -> None:
        job = self.jobs[index]
        self._work(job, now)
        if not job.workers:
            del self._waiting[bisect.bisect_left(self._waiting, index)]
            self._running[index] = job
            job.waiting += now - job.seen
            job.started = now if job.started is None else job.started
            job.began = now
        if not workers:
            del self._running[index]
            bisect.insort(self._waiting, index)
            if not self._physics.yields:
                lost = (now - job.began) % self._physics.checkpoint_every_s
                job.work += lost
                self.redone += lost * job.asked
        self.training += workers - job.workers
        self.paused += pause * workers
        job.workers, job.seen, job.run = workers, now + (pause if workers else 0.0), None
        job.moved = (*(at for at in job.moved if at > now - 60), now)
        job.turn += 1
        if workers:
            heapq.heappush(self._ends, (job.seen + job.work / self._speed(job), index, job.turn))

    def _work(self, job: Job, now: float) -> None:
        """Bring a job's work up to date; while it is paused there is none."""
        if job.workers and now > job.seen:
            job.work -= (now - job.seen) * self._speed(job)
            job.seen = now

    def _speed(self, job: Job) -> float:
        """Seconds of work, as asked for, that get done in a second."""
        return float((job.workers / job.asked) ** self._physics.scaling)

    def _end_jobs(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            at, index, turn = heapq.heappop(self._ends)
            job = self.jobs[index]
            if job.turn == turn and job.workers:
                job.ended = at
                self.training -= job.workers
                job.workers = 0
                del self._running[index]


def _answer(service: Service, rate: float, now: float, tick_s: float) -> None:
    """One tick of requests: late are those that the queue's law says, and all while more wait than the SLO allows."""
    starting = sum(count for _, count in service.starting)
    ready = max(0, service.replicas - starting) + sum(
        count * min(1.0, max(0.0, now + tick_s - at) / tick_s) for at, count in service.starting
    )
    service.starting = [(at, count) for at, count in service.starting if at > now + tick_s]
    service.requests += rate * tick_s
    if not service.backlog and rate <= service.staffing.rate(ready):
        return
    able = ready * service.staffing.throughput
    service.backlog = max(0.0, service.backlog + (rate - able) * tick_s)
    if service.backlog > able * service.staffing.slo_s:
        service.late += rate * tick_s
    else:
        service.late += rate * tick_s * service.staffing.late(min(rate, 0.99 * able), ready)
