"""What a training run's supervisor tells the coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidepool.pool.state import SEGMENTS, Costs, Run


@dataclass(frozen=True, slots=True)
class Report:
    """A run as it is now; always all of it, so that a coordinator that has just restarted needs no memory of it."""

    run: str
    job: str
    """The id that Ray gave its driver: Ray Train's workers are known by that, live members by the run's name."""
    accelerator: str
    min_workers: int
    """0 says that the pool may park it."""
    max_workers: int
    since: float
    """When it was submitted, in seconds since the epoch."""
    priority: int = 0
    per_worker: float = 1.0
    number: int = 0
    """Rises from report to report: one that arrives late is known by it."""
    places: Mapping[str, int] = field(default_factory=dict)
    """Workers by node that are processes or were just told to start."""
    training: bool = False
    """Whether all of them train, and none only starts up."""
    live: bool = False
    """Whether its workers come and go one by one; else all of them stop and start at each resize."""
    costs: Costs = SEGMENTS
    """As last measured."""
    pause_s: float = 0.0
    """For how long training stood still at its last resize."""
    steps_redone: int = 0
    """Steps that its last resize lost."""

    def as_run(self) -> Run:
        """The run, as far as its supervisor knows it."""
        return Run(
            self.run,
            max(1, self.min_workers),
            self.max_workers,
            workers=self.places,
            joining={} if self.training else self.places,
            parkable=self.min_workers == 0,
            per_worker=self.per_worker,
            priority=self.priority,
            since=self.since,
            costs=self.costs,
        )
