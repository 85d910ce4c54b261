"""The coordinator's books of one accelerator type: what it was told, what it promised, what became of it.

    told or ticked -> look at the cluster -> confirm releases -> set the books right -> decide -> promise in the ledger

A promise is in the ledger before anybody hears of it. A worker counts as gone when its run's supervisor says so and Ray
knows its process no more; only then is anything new promised there. In segments all go at once, live members singly.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from tidepool.pool.docket import DOWN, UP, Docket
from tidepool.pool.handover import asked, ended, joined, left, promise
from tidepool.pool.ledger import Ledger
from tidepool.pool.moves import Move, Park, Shrink
from tidepool.pool.policy import PolicySpec, decide
from tidepool.pool.report import Report
from tidepool.pool.sight import Places, Sight, departed, exceeds, is_free_again, most, reconciled
from tidepool.pool.state import EPSILON, App, Run, Snapshot

log = logging.getLogger(__name__)

LAPSE_S = 8.0
"""A run that isn't heard of for so long and has no processes is over; so is an application without replicas."""
LAG_S = 2.0
"""Ray takes back the accelerators of processes that are gone within so long; after that others have taken them."""
GRACE_S = 1.5
"""After a start nothing is decided for so long: those who were here before have to say so first."""


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
        self._docket, self._look, self._spec, self._clock = Docket(ledger), look, spec, clock
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
        """Runs in segments whose processes Ray has known since they were told to start."""
        self._members: dict[str, Places] = {}
        """The most members of each live run that Ray has known since some of them last left."""
        self._gone: dict[str, float] = {}
        """Since when Ray knows some processes of a run no more that should be gone."""
        self._told: set[str] = set()
        """Runs that were told to start and haven't said yet that they do."""
        self._over: set[str] = set()
        """Runs that are over, but for the confirmation that their processes are gone."""

    def report(self, report: Report, seen: Places) -> None:
        """A run's supervisor says how the run is, and which target it knows."""
        name = report.run
        known = self._reports.get(name)
        if known is not None and report.job != known.job:
            self._over.add(name)  # its driver died; the next one is heard when the last process of this one is gone
            return
        self._heard[name] = self._clock()
        if known is None:  # or it was there before this coordinator: its processes are what it says they are
            self._reports[name], self._held[name] = report, report.places
            self._new.append(report.as_run())
        elif report.number > known.number:
            self._update(known, report)
        elif report.number == known.number and name in self._told and not exceeds(seen, report.places):
            self._told.discard(name)  # the answer never reached it: nothing has started
            if not report.live:
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
        if run not in self._reports or run in self._over:
            return {}
        if run not in self._names():
            return self._reports[run].places  # not in the books yet: it stays as it is
        known, held = self.pool.run(run), self._held.get(run, {})
        staying = {node: count for node, count in known.staying.items() if count}
        if self._reports[run].live:
            fits = self._fits(known, held)
            return staying if fits else {node: min(n, held[node]) for node, n in staying.items() if held.get(node)}
        if self._reports[run].places or run in self._told:
            return staying
        return staying if not held and self._fits(known, held) else {}

    def tell(self, report: Report) -> Places:
        """The target, as an answer to a report: workers start when their run hears of places for them."""
        run = report.run
        if self.number(run) != report.number:
            return {}
        target, held = self.target(run), self._held.get(run, {})
        if exceeds(target, held) and (report.live or not report.places):
            self._told.add(run)
            self._held[run] = most(held, target)
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

    def _update(self, known: Report, report: Report) -> None:
        name = report.run
        self._reports[name] = report
        self._told.discard(name)
        if name not in self._names():
            return
        self._with(replace(self.pool.run(name), costs=report.costs))
        if exceeds(report.places, known.places):
            self._held[name] = most(self._held.get(name, {}), report.places) if report.live else report.places
            self._known.discard(name)
            self._docket.advance(name, "granted", *UP)
        if report.live:
            self._conclude(name)
        elif report.training and not known.training:
            self._all_train(name)

    def _all_train(self, run: str) -> None:
        pause_s, redone = self._reports[run].pause_s, self._reports[run].steps_redone
        self.pool = joined(self.pool, run)
        self._docket.advance(run, "done", *UP, "shrink", pause_s=pause_s, steps_redone=redone)

    def _conclude(self, run: str) -> None:
        """A live run is as it should be, if it is."""
        known, report = self.pool.run(run), self._reports[run]
        if not known.leaving and not known.workers:
            self._docket.advance(run, "done", *DOWN)
        elif not known.leaving and report.training and report.places == known.workers:
            self._all_train(run)

    def _confirm(self, run: str, now: float) -> None:
        """Count a run's workers as gone if they are."""
        report, held = self._reports[run], self._held.get(run)
        others = {name: places for name, places in self._held.items() if name != run}
        if report.live:
            self._confirm_live(run, now, others)
            return
        same_job = [name for name in others if self._reports[name].job == report.job and not self._reports[name].live]
        of_same_job = sum(sum(others[name].values()) for name in same_job)
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

    def _confirm_live(self, run: str, now: float, others: dict[str, Places]) -> None:
        report, there = self._reports[run], self._sight.known(run)
        if not there and (run in self._over or now - self._heard[run] > LAPSE_S):
            self._end(run)
            return
        held = self._held[run] = most(self._held.get(run, {}), there)
        known = self._members[run] = most(self._members.get(run, {}), there)
        expected = held if run in self._told else report.places
        gone = departed(held, expected, there, known, self.pool.run(run).leaving)
        if not gone:
            self._gone.pop(run, None)
            return
        overdue = now - self._gone.setdefault(run, now) > LAG_S
        for node, count in gone.items():
            for some in range(count, 0, -1):
                rest = {**held, node: held[node] - some}
                if overdue or is_free_again(self.pool, {node: some}, self._sight, {**others, run: rest}):
                    held = self._held[run] = {name: left for name, left in rest.items() if left}
                    self._members[run] = {**self._members[run], node: there.get(node, 0)}
                    self._lose(run, node, min(some, self.pool.run(run).workers.get(node, 0) - there.get(node, 0)))
                    break
        self._conclude(run)

    def _lose(self, run: str, node: str, count: int) -> None:
        """Some members of a live run are gone: those that were to leave, or such as died."""
        unbidden = count > self.pool.run(run).leaving.get(node, 0)
        self.pool = left(self.pool, run, node, max(0, count))  # none if their place was taken before it was known
        rest = self.pool.run(run)
        if 0 < rest.size < rest.min_workers:
            self._with(replace(rest, leaving=rest.workers, joining={}))
        if unbidden:
            self._docket.advance(run, "aborted", *UP, outcome="a worker was lost")
        if not rest.leaving:
            self._docket.advance(run, "released", *DOWN)

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
        self._docket.advance(run, "released", *DOWN)
        self._docket.advance(run, "done", "park", *(() if waiting.workers else DOWN))

    def _end(self, run: str) -> None:
        self.pool = ended(self.pool, run)
        self._docket.end(run)
        for names in (self._over, self._known, self._told):
            names.discard(run)
        for table in (self._reports, self._heard, self._held, self._members, self._gone):
            table.pop(run, None)

    def _set_right(self, now: float) -> None:
        """Make the books fit what Ray says; promises that it overtook are over."""
        before = self.pool
        firm = {run: places for run in self._held if (places := self._seen(run))}
        apps = tuple(app for app in before.apps if self._is_alive(app, now))
        pool = reconciled(replace(before, apps=apps), self._new, self._sight, self._held, firm)
        self.pool = replace(pool, demand=pool.demand.then(now, pool.wanted) if apps else pool.demand)
        self._new.clear()
        for run in (run for run in self.pool.runs if not run.workers):
            self._docket.advance(run.name, "aborted", *UP, "shrink", outcome="its place was taken")
        self._docket.close(before, self.pool)

    def _seen(self, run: str) -> Places:
        """Those of a run's workers that Ray sees live."""
        held, report = self._held[run], self._reports[run]
        if report.live:
            living = self._sight.members.get(run, {})
            return {node: min(count, living[node]) for node, count in held.items() if living.get(node)}
        return held if self._sight.workers.get(report.job) else {}

    def _is_alive(self, app: App, now: float) -> bool:
        there = app.name in self._sight.replicas or app.name in self._sight.pending
        return there or now - self._wished[app.name] <= LAPSE_S

    def _promise(self, move: Move, now: float) -> None:
        if isinstance(move, Shrink | Park):
            self._docket.advance(move.run, "aborted", *UP, outcome="overtaken by a smaller size")
        self.pool = promise(self.pool, move, self._docket.enter(move).id, now)
        log.info("%s: %s", move.kind, move.why)

    def _fits(self, run: Run, held: Places) -> bool:
        """Whether the places of a run's workers that don't exist yet are free, as Ray sees it."""
        more = Counter(run.staying) - Counter(held)
        return all(self._sight.free.get(node, 0.0) + EPSILON >= n * run.per_worker for node, n in more.items())

    def _with(self, run: Run) -> None:
        runs = tuple(run if other.name == run.name else other for other in self.pool.runs)
        self.pool = replace(self.pool, runs=runs)
