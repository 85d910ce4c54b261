"""A training run in segments: stretches of training at one size each, between which accelerators change hands.

    wait until the coordinator has places for the run -> train there -> told of another size: yield -> wait

A segment is a worker group of fixed size, so every strategy of training works, and only Ray's public API is needed.
It ends at a step boundary with its state saved; at size zero nothing of the run is on the cluster but its supervisor.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from tidepool.errors import ClusterError
from tidepool.pool.report import Report
from tidepool.pool.state import Costs

log = logging.getLogger(__name__)

Places = Mapping[str, int]
"""Workers by node."""
RETRY_S = 0.5
"""Between two tries to reach a coordinator that doesn't answer."""


class Training(Protocol):
    """What a run must be able to do to be moved by the pool."""

    def segment(self, number: int, places: Places, began: Callable[[int], None]) -> int | None:
        """Train with these workers until the end (None), or until a notice for `number` (the steps done).

        `began` is told the step that the workers went on from, when all of them are up.
        """

    def notice(self, number: int) -> None:
        """Let segment `number` end at its next step boundary; may come before its workers are up. Returns at once."""


class Office(Protocol):
    """The coordinator, as a run sees it. `poll` and `leave` raise `ClusterError` while it doesn't answer."""

    def tell(self, report: Report) -> None:
        """Send a report, without waiting and without knowing whether it arrives: the next poll brings it again."""

    def poll(self, report: Report, seen: Places) -> Places:
        """Where the run should be, once that isn't `seen` any more or after a while; `{}` if nowhere, or not yet."""

    def leave(self, run: str) -> None:
        """The run is over."""


class Supervisor:
    """Moves one run through its segments. `train` blocks until the run is over."""

    def __init__(
        self, report: Report, training: Training, office: Office, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._report, self._training, self._office, self._clock = report, training, office, clock
        self._wanted: Places = {}
        self._number = 0
        self._noticed_at: float | None = None
        self._over = False
        self._changed = threading.Condition()

    def train(self) -> None:
        """Train to the end; an error of a segment is raised as it is."""
        listener = threading.Thread(target=self._listen, daemon=True)
        listener.start()
        try:
            done: int | None = 0
            while done is not None:
                done = self._segment(self._await_places(), done)
        finally:
            with self._changed:
                self._over = True
            self._farewell()

    def _await_places(self) -> Places:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._wanted))
            return self._wanted

    def _segment(self, places: Places, done: int) -> int | None:
        """One segment; the steps done after it, None at the end of the run."""
        started = self._clock()
        with self._changed:
            paused_at = self._noticed_at
            self._number, self._noticed_at = self._number + 1, None
            self._tell(places=places, training=False)
            self._heed()

        def began(step: int) -> None:
            with self._changed:
                costs, pause = self._report.costs, self._clock() - (started if paused_at is None else paused_at)
                if paused_at is not None:
                    costs = replace(costs, shrink_pause_s=pause, grow_pause_s=pause)
                self._tell(training=True, costs=costs, pause_s=pause, steps_redone=max(0, done - step))

        after = self._training.segment(self._number, places, began)
        with self._changed:
            costs: Costs = self._report.costs
            if self._noticed_at is not None:
                costs = replace(costs, release_s=self._clock() - self._noticed_at)
            if not self._wanted:
                self._noticed_at = None  # a run that waits at zero isn't paused by a resize
            self._wanted = {}
            self._tell(places={}, training=False, costs=costs)
        return after

    def _tell(self, **news: Any) -> None:
        """Change the report; the lock is held."""
        self._report = replace(self._report, number=self._report.number + 1, **news)
        self._office.tell(self._report)

    def _listen(self) -> None:
        """Ask where the run should be, over and over, and heed the answers."""
        while True:
            with self._changed:
                report, seen = self._report, self._wanted
                if self._over:
                    return
            try:
                wanted = self._office.poll(report, seen)
            except ClusterError as error:
                log.warning("%s stays as it is: %s", report.run, error)
                time.sleep(RETRY_S)
                continue
            with self._changed:
                if report.number == self._report.number:  # else it is the answer to what was
                    self._wanted = wanted
                    self._heed()
                    self._changed.notify_all()

    def _heed(self) -> None:
        """Give notice if the segment should be of another size; the lock is held."""
        if self._report.places and self._wanted != self._report.places and self._noticed_at is None:
            self._noticed_at = self._clock()
            self._training.notice(self._number)

    def _farewell(self) -> None:
        try:
            self._office.leave(self._report.run)
        except ClusterError as error:
            log.warning("the pool will find out by itself that %s is over: %s", self._report.run, error)
