"""What a crew and its members tell one another about a membership epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tidepool.errors import TrainingError

NO_STATE = -1
"""The step of a member that hasn't been in any epoch."""
Begin = Literal["own", "first", "checkpoint"]
"""The state that an epoch begins with: each member's own, since all have the same; rank 0's; that of the last
checkpoint, which rank 0 reads."""


@dataclass(frozen=True)
class Post:
    """A member's place in a membership epoch."""

    epoch: int
    rank: int
    size: int
    neighbours: int
    """Members on its node, itself included: they share the cores."""
    begin: Begin


@dataclass(frozen=True)
class Joined:
    """A member is in an epoch."""

    step: int
    paused_s: float | None
    """Since its last step; None if it has made none."""


@dataclass(frozen=True)
class Stint:
    """How a member's steps in an epoch ended: the run is over, rank 0 was told to, others are gone, or by an error."""

    end: Literal["finished", "asked", "broken", "failed"]
    step: int
    """Steps that its state has seen."""
    failure: TrainingError | None = None
