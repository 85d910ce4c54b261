"""A training run in segments: stretches of training at one size each, between which accelerators change hands.

    wait until the coordinator has places for the run -> train there -> told of another size: yield -> wait

A segment is a worker group of fixed size, so every strategy of training works, and only Ray's public API is needed.
It ends at a step boundary with its state saved; at size zero nothing of the run is on the cluster but its supervisor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from tidepool.pool.line import Line, Office, Places
from tidepool.pool.report import Report
from tidepool.pool.state import Costs


class Training(Protocol):
    """What a run must be able to do to be moved by the pool."""

    def segment(self, number: int, places: Places, began: Callable[[int], None]) -> int | None:
        """Train with these workers until the end (None), or until a notice for `number` (the steps done).

        `began` is told the step that the workers went on from, when all of them are up.
        """

    def notice(self, number: int) -> None:
        """Let segment `number` end at its next step boundary; may come before its workers are up. Returns at once."""


class Supervisor:
    """Moves one run through its segments. `train` blocks until the run is over."""

    def __init__(
        self, report: Report, training: Training, office: Office, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._training, self._clock = training, clock
        self._line = Line(report, office, self._heed)
        self._number = 0
        self._noticed_at: float | None = None

    def train(self) -> None:
        """Train to the end; an error of a segment is raised as it is."""
        self._line.open()
        try:
            done: int | None = 0
            while done is not None:
                done = self._segment(self._await_places(), done)
        finally:
            self._line.close()

    def _await_places(self) -> Places:
        with self._line.lock:
            self._line.lock.wait_for(lambda: bool(self._line.wanted))
            return self._line.wanted

    def _segment(self, places: Places, done: int) -> int | None:
        """One segment; the steps done after it, None at the end of the run."""
        started, line = self._clock(), self._line
        with line.lock:
            paused_at = self._noticed_at
            self._number, self._noticed_at = self._number + 1, None
            line.tell(places=places, training=False)
            self._heed()

        def began(step: int) -> None:
            with line.lock:
                costs, pause = line.report.costs, self._clock() - (started if paused_at is None else paused_at)
                if paused_at is not None:
                    costs = replace(costs, shrink_pause_s=pause, grow_pause_s=pause)
                line.tell(training=True, costs=costs, pause_s=pause, steps_redone=max(0, done - step))

        after = self._training.segment(self._number, places, began)
        with line.lock:
            costs: Costs = line.report.costs
            if self._noticed_at is not None:
                costs = replace(costs, release_s=self._clock() - self._noticed_at)
            if not line.wanted:
                self._noticed_at = None  # a run that waits at zero isn't paused by a resize
            line.wanted = {}
            line.tell(places={}, training=False, costs=costs)
        return after

    def _heed(self) -> None:
        """Give notice if the segment should be of another size; the lock is held."""
        places = self._line.report.places
        if places and self._line.wanted != places and self._noticed_at is None:
            self._noticed_at = self._clock()
            self._training.notice(self._number)
