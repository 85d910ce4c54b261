"""What a training run's supervisor tells the coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tidepool.pool.state import SEGMENTS, Costs


@dataclass(frozen=True, slots=True)
class Report:
    """A run as it is now; always all of it, so that a coordinator that has just restarted needs no memory of it."""

    run: str
    job: str
    """The id that Ray gave its driver: its workers are known by that."""
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
    """Whether they train, and don't only start up."""
    costs: Costs = SEGMENTS
    """As last measured."""
    pause_s: float = 0.0
    """For how long training stood still at its last resize."""
    steps_redone: int = 0
    """Steps that its last resize lost."""
