"""Outcomes as a table for people, as JSON and as JUnit XML for machines."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from xml.etree import ElementTree

from tidepool.conformance.case import Case, Level
from tidepool.conformance.runner import Outcome, Verdict


def table(outcomes: Sequence[Outcome], width: int | None = None) -> str:
    """One line a case, with what the protocol says below each that failed."""
    width = width or shutil.get_terminal_size((120, 24)).columns
    lines = []
    for transport in dict.fromkeys(outcome.transport for outcome in outcomes):
        lines += [f"{transport}", "-" * len(transport)]
        for outcome in (outcome for outcome in outcomes if outcome.transport is transport):
            case = outcome.case
            lines += _indented(f"{outcome.verdict:4}  {case.level:9}  {case.id:24}  {case.says}", width, "", 43)
            if outcome.verdict is Verdict.FAIL:
                lines += _indented(f"seen: {outcome.reason}", width, " " * 17, 23)
                lines += _indented(f"see:  {case.section}", width, " " * 17, 23)
            elif outcome.verdict is Verdict.SKIP:
                lines += _indented(outcome.reason, width, " " * 17, 17)
        lines.append("")
    return "\n".join([*lines, *summary(outcomes)])


def _indented(text: str, width: int, first: str, rest: int) -> list[str]:
    return textwrap.wrap(text, max(width, 60), initial_indent=first, subsequent_indent=" " * rest)


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """One line a level: how many passed, failed, were skipped."""
    count = Counter((outcome.case.level, outcome.verdict) for outcome in outcomes)
    return [
        f"{level:9}  {count[level, Verdict.PASS]:3} passed  {count[level, Verdict.FAIL]:3} failed  "
        f"{count[level, Verdict.SKIP]:3} skipped"
        for level in Level
    ]


def catalogue(cases: Iterable[Case]) -> str:
    """All cases as a Markdown table."""
    lines = ["| case | over | level | the rule | where |", "| --- | --- | --- | --- | --- |"]
    lines += [
        f"| `{case.id}` | {', '.join(case.transports)} | {case.level} | {case.says} | {case.section} |"
        for case in cases
    ]
    return "\n".join(lines)


def to_json(outcomes: Iterable[Outcome]) -> str:
    """A JSON list with one object an outcome."""
    return json.dumps(
        [
            {
                "id": outcome.case.id,
                "transport": outcome.transport,
                "level": outcome.case.level,
                "section": outcome.case.section,
                "says": outcome.case.says,
                "verdict": outcome.verdict.lower(),
                "reason": outcome.reason,
                "seconds": round(outcome.seconds, 6),
            }
            for outcome in outcomes
        ],
        indent=2,
    )


def to_junit(outcomes: Sequence[Outcome]) -> str:
    """JUnit's XML, as build servers read it; a case's class is its transport and level."""
    verdicts = Counter(outcome.verdict for outcome in outcomes)
    suite = ElementTree.Element(
        "testsuite",
        name="open-inference-protocol",
        tests=str(len(outcomes)),
        failures=str(verdicts[Verdict.FAIL]),
        skipped=str(verdicts[Verdict.SKIP]),
        time=f"{sum(outcome.seconds for outcome in outcomes):.3f}",
    )
    for outcome in outcomes:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"{outcome.transport}.{outcome.case.level}",
            name=outcome.case.id,
            time=f"{outcome.seconds:.3f}",
        )
        if outcome.verdict is Verdict.FAIL:
            ElementTree.SubElement(
                case, "failure", message=outcome.reason
            ).text = f"{outcome.case.says} ({outcome.case.section})"
        elif outcome.verdict is Verdict.SKIP:
            ElementTree.SubElement(case, "skipped", message=outcome.reason)
    return ElementTree.tostring(suite, encoding="unicode")
