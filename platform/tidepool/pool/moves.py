"""What the policy decides: moves, each a value with a reason in words and numbers.

A move is a promise, not yet a fact. `handover` says how promises become facts; the ledger keeps both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Move:
    """Any of the moves below."""

    why: str

    @property
    def kind(self) -> str:
        """The move's name in the ledger: "shrink", "grant", ..."""
        return type(self).__name__.lower()


@dataclass(frozen=True, slots=True)
class Grant(Move):
    """One replica of an application may have accelerators on a node."""

    app: str
    node: str
    accelerators: float
    awaited: float = 0.0
    """Those of them that leaving workers vacate first; 0 if all are free now."""


@dataclass(frozen=True, slots=True)
class Withdraw(Move):
    """A reservation is taken back: its application no longer asks for it."""

    app: str
    reservation: str


@dataclass(frozen=True, slots=True)
class Resize(Move):
    """A run gets another number of workers."""

    run: str
    was: int
    to: int
    places: Mapping[str, int]
    """Workers that leave or join, by node."""
    accelerators: float
    """That change hands."""


@dataclass(frozen=True, slots=True)
class Shrink(Resize):
    """A run yields some of its workers at its next step boundary."""


@dataclass(frozen=True, slots=True)
class Park(Resize):
    """A run yields all of its workers and waits."""


@dataclass(frozen=True, slots=True)
class Grow(Resize):
    """A run gets further workers."""


@dataclass(frozen=True, slots=True)
class Resume(Resize):
    """A run that has no workers starts, or goes on from where it was parked."""


@dataclass(frozen=True, slots=True)
class Buy(Move):
    """The cluster autoscaler is asked for machines."""

    machines: int
    accelerators: float
    """Of each."""


@dataclass(frozen=True, slots=True)
class Return(Move):
    """A bought machine is given back: nothing is placed on it any more, and what trains on it leaves."""

    node: str
