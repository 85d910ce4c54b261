"""A live training run: members that join and leave at a step boundary while the others go on.

    asked where to be -> move -> hear of each change -> report it

At zero members its state is in a checkpoint, and nothing of the run is on the cluster but its driver.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, runtime_checkable

from tidepool.pool.line import Line, Office, Places
from tidepool.pool.report import Report


class Changed(Protocol):
    """Hears how a run changes."""

    def __call__(self, places: Places, training: bool, pause_s: float, steps_redone: int) -> None:
        """Members that are processes or about to be; whether all of them train; for how long training stood still, and
        the steps that were lost, since all of them last did.
        """


@runtime_checkable
class Training(Protocol):
    """What a live run must be able to do to be moved by the pool."""

    def move(self, places: Places) -> None:
        """Have so many members on these nodes, as soon as a step boundary allows. Returns at once."""

    def train(self, changed: Changed) -> None:
        """Train to the end; without places, wait for some."""


class Supervisor:
    """Moves one run. `train` blocks until it is over."""

    def __init__(
        self, report: Report, training: Training, office: Office, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._training, self._clock = training, clock
        self._line = Line(report, office, self._heed)
        self._noticed_at: float | None = None
        """When it became known that members are to leave."""

    def train(self) -> None:
        """Train to the end; an error of the training is raised as it is."""
        self._line.open()
        try:
            self._training.train(self._changed)
        finally:
            self._line.close()

    def _heed(self) -> None:
        places, wanted = self._line.report.places, self._line.wanted
        if not any(count > wanted.get(node, 0) for node, count in places.items()):
            self._noticed_at = None
        elif self._noticed_at is None:
            self._noticed_at = self._clock()
        self._training.move(wanted)

    def _changed(self, places: Places, training: bool, pause_s: float, steps_redone: int) -> None:
        with self._line.lock:
            before, costs = self._line.report, self._line.report.costs
            if self._noticed_at is not None and sum(places.values()) < sum(before.places.values()):
                costs = replace(costs, release_s=self._clock() - self._noticed_at)
                self._noticed_at = None
            if pause_s:
                costs = replace(costs, shrink_pause_s=pause_s, grow_pause_s=pause_s)
            self._line.tell(places=places, training=training, costs=costs, pause_s=pause_s, steps_redone=steps_redone)
