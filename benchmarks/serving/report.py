"""What was measured, as rows, as a Markdown table and as JSON."""

from __future__ import annotations

import os
import statistics
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from load import Result

COLUMNS = ("server", "load", "requests/s", "p50 ms", "p99 ms", "refused", "errors", "memory MB", "generator us")
"""Of the printed table; JSON has more."""
PERIOD = 1000
"""Answers after which a periodic stall is looked for."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one server under one load."""

    server: str
    load: str
    """In words: connections, or the share of capacity."""
    result: Result
    memory_mb: float
    offered_per_s: float | None = None
    """Of an open loop."""


def conditions() -> dict[str, Any]:
    """When, where and by which command."""
    return {
        "command": " ".join(["python benchmarks/serving", *sys.argv[1:]]),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "cores": os.cpu_count(),
        "load_average": [round(each, 2) for each in os.getloadavg()],
    }


def rows(samples: list[Sample]) -> list[dict[str, Any]]:
    """One row for each server and load: medians of its repeats, sums of refusals and errors; by load, then as met."""
    groups: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.load, sample.server), []).append(sample)
    loads = list(dict.fromkeys(sample.load for sample in samples))
    return [_row(group) for group in sorted(groups.values(), key=lambda group: loads.index(group[0].load))]


def markdown(table: list[dict[str, Any]], absent: dict[str, str]) -> str:
    """The table, and who isn't in it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(row[column]) for column in COLUMNS) + " |" for row in table]
    lines += [f"| {server} | not measured: {reason} |" + " |" * (len(COLUMNS) - 2) for server, reason in absent.items()]
    return "\n".join(lines)


def _row(group: list[Sample]) -> dict[str, Any]:
    results = [sample.result for sample in group]
    offered = [sample.offered_per_s for sample in group if sample.offered_per_s]
    return {
        "server": group[0].server,
        "load": group[0].load,
        "repeats": len(group),
        "offered/s": round(statistics.median(offered), 1) if offered else None,
        "requests/s": _short(statistics.median(result.rate for result in results)),
        "p50 ms": _short(statistics.median(result.percentile(0.5) for result in results) * 1e3),
        "p99 ms": _short(statistics.median(result.percentile(0.99) for result in results) * 1e3),
        "max ms": _short(max(max(result.latencies, default=0.0) for result in results) * 1e3),
        "refused": sum(result.refused for result in results),
        "errors": sum(result.errors for result in results),
        "memory MB": round(statistics.median(sample.memory_mb for sample in group)),
        "generator us": round(statistics.median(result.cpu_us for result in results), 1),
        "every thousandth": _periodic(results),
        "each requests/s": [_short(result.rate) for result in results],
    }


def _short(value: float) -> float | None:
    """Three digits, or whole; None for no value, which JSON can't say otherwise."""
    if value != value:
        return None
    return round(value) if value >= 100 else float(f"{value:.3g}")


def _periodic(results: list[Result]) -> float | None:
    """How much slower than their median the slowest run of every 1,000th answer is: near 1 without a periodic stall."""
    latencies = max((result.latencies for result in results), key=len)
    if len(latencies) < 5 * PERIOD:
        return None
    by_phase = [statistics.median(latencies[phase::PERIOD]) for phase in range(PERIOD)]
    return round(max(by_phase) / statistics.median(by_phase), 2)
