"""The coordinator's books of one accelerator type: what it was told, what it promised, what became of it.

    told or ticked -> look at the cluster -> confirm releases -> set the books right -> decide -> promise in the ledger

A promise is in the ledger before anybody hears of it. A run's workers count as gone when its supervisor says so and Ray
knows none of its processes any more; only then is anything new promised there.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from tidepool.pool.handover import asked, ended, joined, left, promise
from tidepool.pool.ledger import FINAL, PHASES, Entry, Ledger, Phase
from tidepool.pool.moves import Grant, Move, Park, Resize, Shrink, Withdraw
from tidepool.pool.policy import PolicySpec, decide
from tidepool.pool.report import Report
from tidepool.pool.sight import Places, Sight, is_free_again, reconciled
from tidepool.pool.state import EPSILON, App, Run, Snapshot

log = logging.getLogger(__name__)

LAPSE_S = 8.0
"""A run that isn't heard of for so long and has no processes is over; so is an application without replicas."""
LAG_S = 2.0
"""Ray takes back the accelerators of processes that are gone within so long; after that others have taken them."""
GRACE_S = 1.5
"""After a start nothing is decided for so long: those who were here before have to say so first."""

UP, DOWN = ("grow", "resume"), ("shrink", "park")


class Books:
    """Who has what, and who was promised what. `look` sees the cluster; `clock` is in seconds since the epoch."""

    def __init__(
        self,
        accelerator: str,
        ledger: Ledger,
        look: Callable[[str], Sight],
        spec: PolicySpec,
        clock: Callable[[], float],
    ) -> None:
        self.pool = Snapshot(nodes=(), accelerator=accelerator)
        self._ledger, self._look, self._spec, self._clock = ledger, look, spec, clock
        self._opened = clock()
        self._sight = Sight({}, {})
        self._reports: dict[str, Report] = {}
        self._heard: dict[str, float] = {}
        """When each run last said something."""
        self._wished: dict[str, float] = {}
        """When each application did."""
        self._new: list[Run] = []
        self._held: dict[str, Places] = {}
        """Workers of each run that are processes, or were told to start; until their end is confirmed."""
        self._known: set[str] = set()
        """Runs whose processes Ray has known since they were told to start."""
        self._gone: dict[str, float] = {}
        """Since when Ray knows no process of a run that has ended a segment."""
        self._told: set[str] = set()
        """Runs that were told to start and haven't said yet that they do."""
        self._over: set[str] = set()
        """Runs that are over, but for the confirmation that their processes are gone."""
        self._open: dict[str, list[Entry]] = {}
        """Ledger entries of each run that are under way."""
        self._granted: dict[str, Entry] = {}
        """Those of reservations."""

    def report(self, report: Report, seen: Places) -> None:
        """A run's supervisor says how the run is, and which target it knows."""
        name = report.run
        self._heard[name] = self._clock()
        known = self._reports.get(name)
        if known is None:
            self._enter(report)
        elif report.number > known.number:
            self._update(known, report)
        elif report.number == known.number and name in self._told and not seen:
            self._told.discard(name)  # the answer never reached it: it has not started
            self._held[name] = {}

    def want(self, app: App) -> None:
        """An application says how many replicas it needs; what it holds, the cluster knows better."""
        self._wished[app.name] = self._clock()
        known = next((other for other in self.pool.apps if other.name == app.name), app)
        self.pool = asked(self.pool, replace(app, running=known.running, pending=known.pending), self._clock())

    def leave(self, run: str) -> None:
        """A run is over."""
        if run in self._reports:
            self._over.add(run)
            self._told.discard(run)

    def target(self, run: str) -> Places:
        """Where a run should be: `{}` if nowhere, or if its place isn't free yet."""
        if run not in self._names() or run in self._over:
            return {}
        known = self.pool.run(run)
        staying = {node: count for node, count in known.staying.items() if count}
        if self._reports[run].places or run in self._told:
            return staying
        return staying if not self._held.get(run) and self._fits(known) else {}

    def tell(self, report: Report) -> Places:
        """The target, as an answer to a report: a run that waits starts when it hears of places."""
        run = report.run
        if self.number(run) != report.number:
            return {}
        target = self.target(run)
        if target and not report.places and run not in self._told:
            self._told.add(run)
            self._held[run] = target
        return target

    def number(self, run: str) -> int:
        """That of the last report of a run, -1 for none."""
        return self._reports[run].number if run in self._reports else -1

    def settle(self) -> None:
        """Look, confirm, set right, decide, promise.

        Raises:
            StorageError: the ledger can't be written; nothing was promised that isn't in it.
        """
        now = self._clock()
        self._sight = self._look(self.pool.accelerator)
        for run in self._names():
            self._confirm(run, now)
        self._set_right(now)
        if now - self._opened < GRACE_S:
            return
        for move in decide(self.pool, self._spec, now):
            self._promise(move, now)
        for run in self._names():
            self._confirm(run, now)

    def _names(self) -> list[str]:
        return [run.name for run in self.pool.runs]

    def _enter(self, report: Report) -> None:
        """A run is new, or was there before this coordinator: its processes are what it says they are."""
        self._reports[report.run] = report
        self._held[report.run] = report.places
        self._new.append(
            Run(
                report.run,
                max(1, report.min_workers),
                report.max_workers,
                workers=report.places,
                joining={} if report.training else report.places,
                parkable=report.min_workers == 0,
                per_worker=report.per_worker,
                priority=report.priority,
                since=report.since,
                costs=report.costs,
            )
        )

    def _update(self, known: Report, report: Report) -> None:
        name = report.run
        self._reports[name] = report
        self._told.discard(name)
        if name not in self._names():
            return
        self._with(replace(self.pool.run(name), costs=report.costs))
        if report.places and not known.places:
            self._held[name] = report.places
            self._known.discard(name)
            self._advance(name, "granted", *UP)
        if report.training and not known.training:
            self.pool = joined(self.pool, name)
            self._advance(name, "done", *UP, "shrink", pause_s=report.pause_s, steps_redone=report.steps_redone)

    def _confirm(self, run: str, now: float) -> None:
        """Count a run's workers as gone if they are."""
        report, held = self._reports[run], self._held.get(run)
        others = {name: places for name, places in self._held.items() if name != run}
        of_same_job = sum(sum(others[name].values()) for name in others if self._reports[name].job == report.job)
        if self._sight.workers.get(report.job, 0) > of_same_job:
            self._known.add(run)
            self._gone.pop(run, None)
        elif run in self._over or now - self._heard[run] > LAPSE_S:
            self._end(run)
        elif self._has_yielded(run):
            since = self._gone.setdefault(run, now)
            if is_free_again(self.pool, held or {}, self._sight, others) or now - since > LAG_S:
                del self._gone[run]
                self._release(run)

    def _has_yielded(self, run: str) -> bool:
        """Whether a run of which Ray knows no process has ended its segment, and not merely begun it.

        Its supervisor may say so later than the first replica stands in its place.
        """
        leaving = self.pool.run(run).leaving
        if self._reports[run].places:
            return bool(leaving) and run in self._known
        return run not in self._told and bool(leaving or self._held.get(run))

    def _release(self, run: str) -> None:
        """No process of a run is left: those that were to leave have left, the others wait to start."""
        self._held[run] = {}
        self._known.discard(run)
        for node, workers in self.pool.run(run).leaving.items():
            self.pool = left(self.pool, run, node, workers)
        waiting = self.pool.run(run)
        self._with(replace(waiting, joining=waiting.workers))
        self._advance(run, "released", *DOWN)
        self._advance(run, "done", "park", *(() if waiting.workers else DOWN))

    def _end(self, run: str) -> None:
        self.pool = ended(self.pool, run)
        self._advance(run, "aborted", *UP, *DOWN, outcome="the run is over")
        self._over.discard(run)
        self._known.discard(run)
        for table in (self._reports, self._heard, self._held, self._gone, self._open):
            table.pop(run, None)

    def _set_right(self, now: float) -> None:
        """Make the books fit what Ray says; promises that it overtook are over."""
        before = self.pool
        jobs = {run: report.job for run, report in self._reports.items()}
        unseen = [run for run in self._held if not self._sight.workers.get(jobs[run])]
        apps = tuple(app for app in before.apps if self._is_alive(app, now))
        pool = reconciled(replace(before, apps=apps), self._new, self._sight, self._held, unseen)
        self.pool = replace(pool, demand=pool.demand.then(now, pool.wanted) if apps else pool.demand)
        self._new.clear()
        for run in (run for run in self.pool.runs if not run.workers):
            self._advance(run.name, "aborted", *UP, "shrink", outcome="its place was taken")
        had, has = ({app.name: app.replicas for app in side.apps} for side in (before, self.pool))
        came = Counter({name: count - had.get(name, 0) for name, count in has.items() if count > had.get(name, 0)})
        kept = {reservation.id for reservation in self.pool.reservations}
        for reservation in (old for old in before.reservations if old.id not in kept):
            entry = self._granted.pop(reservation.id)
            if came[reservation.app] > 0:
                came[reservation.app] -= 1
                self._ledger.advance(entry.id, "granted")
                self._ledger.advance(entry.id, "done")
            else:
                self._ledger.advance(entry.id, "aborted", outcome="its place was taken")

    def _is_alive(self, app: App, now: float) -> bool:
        there = app.name in self._sight.replicas or app.name in self._sight.pending
        return there or now - self._wished[app.name] <= LAPSE_S

    def _promise(self, move: Move, now: float) -> None:
        if isinstance(move, Shrink | Park):
            self._advance(move.run, "aborted", *UP, outcome="overtaken by a smaller size")
        entry = self._ledger.promise(move)
        self.pool = promise(self.pool, move, entry.id, now)
        log.info("%s: %s", move.kind, move.why)
        match move:
            case Resize():
                self._open.setdefault(move.run, []).append(entry)
            case Grant():
                self._granted[entry.id] = entry
            case Withdraw():
                self._granted.pop(move.reservation, None)
                self._ledger.advance(move.reservation, "aborted", outcome="no longer asked for")
                self._ledger.advance(entry.id, "done")

    def _fits(self, run: Run) -> bool:
        """Whether the places of a run that waits are free, as Ray sees it."""
        free = self._sight.free
        return all(free.get(node, 0.0) + EPSILON >= count * run.per_worker for node, count in run.staying.items())

    def _with(self, run: Run) -> None:
        runs = tuple(run if other.name == run.name else other for other in self.pool.runs)
        self.pool = replace(self.pool, runs=runs)

    def _advance(self, run: str, phase: Phase, *kinds: str, **costs: float | str) -> None:
        """Take the run's open entries of these kinds to a phase, if they aren't past it."""
        entries = self._open.get(run, [])
        for index, entry in enumerate(entries):
            if entry.kind in kinds and PHASES.index(entry.phase) < PHASES.index(phase):
                entries[index] = self._ledger.advance(entry.id, phase, **costs)
        self._open[run] = [entry for entry in entries if entry.phase not in FINAL]
