"""Runs cases on a server."""

from __future__ import annotations

import fnmatch
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from tidepool.conformance.case import Case, Failed, Level, Skipped, Transport
from tidepool.conformance.messages import Refused
from tidepool.conformance.session import Session


class Verdict(StrEnum):
    """How a case ended."""

    PASS = "pass"
    FAIL = "FAIL"
    SKIP = "skip"


@dataclass(frozen=True)
class Outcome:
    """What one case showed over one transport."""

    case: Case
    transport: Transport
    verdict: Verdict
    reason: str
    """Why it failed or was skipped."""
    seconds: float


def run(sessions: Sequence[Session], cases: Iterable[Case], pattern: str = "*") -> list[Outcome]:
    """Check every case whose id fits the shell pattern, over every transport that it has and a session is for."""
    return [
        check(case, session)
        for session in sessions
        for case in cases
        if session.target.transport in case.transports and fnmatch.fnmatchcase(case.id, pattern)
    ]


def check(case: Case, session: Session) -> Outcome:
    """Check one case."""
    began = time.perf_counter()
    try:
        case.check(session)
        verdict, reason = Verdict.PASS, ""
    except Skipped as skipped:
        verdict, reason = Verdict.SKIP, str(skipped)
    except (Failed, Refused) as failed:
        verdict, reason = Verdict.FAIL, str(failed)
    return Outcome(case, session.target.transport, verdict, reason, time.perf_counter() - began)


def broken(outcomes: Iterable[Outcome], levels: Iterable[Level]) -> list[Outcome]:
    """The failures among rules of these levels."""
    wanted = set(levels)
    return [outcome for outcome in outcomes if outcome.verdict is Verdict.FAIL and outcome.case.level in wanted]
