"""What a case is: one rule of the protocol, and the check that a server keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tidepool.conformance.session import Session


class Level(StrEnum):
    """How much a rule binds."""

    MUST = "MUST"
    """The protocol's text says so."""
    SHOULD = "SHOULD"
    """The text is silent or leaves it open, but clients rely on it."""
    EXTENSION = "EXTENSION"
    """Not of the protocol itself: checked where the server offers it."""


class Transport(StrEnum):
    """What carries the requests."""

    REST = "REST"
    GRPC = "gRPC"


class Failed(Exception):
    """The server breaks the rule."""


class Skipped(Exception):
    """The rule can't be checked on this server or model."""


Check = Callable[["Session"], None]


@dataclass(frozen=True)
class Case:
    """One rule. `check` returns if it is kept, raises `Failed` if it is broken, `Skipped` if it can't be checked."""

    id: str
    level: Level
    section: str
    """Where the protocol, or what else it relies on, says so."""
    says: str
    """The rule, in our words."""
    transports: tuple[Transport, ...]
    check: Check


@dataclass
class Table:
    """The cases of one subject, in the order in which they were added."""

    transports: tuple[Transport, ...]
    cases: list[Case] = field(default_factory=list)

    def __call__(self, id: str, level: Level, section: str, says: str) -> Callable[[Check], Check]:
        """Add the decorated check as a case."""

        def add(check: Check) -> Check:
            self.cases.append(Case(id, level, section, says, self.transports, check))
            return check

        return add


def require(holds: bool, what: str, seen: Any = None) -> None:
    """Raise `Failed` with `what` and the value seen, unless `holds`."""
    if not holds:
        raise Failed(what if seen is None else f"{what}: {_short(seen)}")


def _short(seen: Any) -> str:
    text = seen if isinstance(seen, str) else repr(seen)
    return text if len(text) <= 200 else text[:197] + "..."
