"""Progress of a long step, told to whoever watches: a terminal bar, a job's log, or nobody."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Protocol, TextIO

import orjson

MARK = "\x1e"
"""Begins a progress line in a job's log, so that the CLI can tell it from other output."""


class Progress(Protocol):
    """Called as often as there is news: `done` of `total` units of `step`; equal means that the step is over."""

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None: ...


def quiet(step: str, done: float, total: float, note: str = "") -> None:
    """Tell nobody."""


class LineProgress:
    """Progress as marked JSON lines, at most ten a second for each step; the first and the last always go out."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out or sys.stdout, clock
        self._last: dict[str, tuple[float, float, str]] = {}

    def __call__(self, step: str, done: float, total: float, note: str = "") -> None:
        now = self._clock()
        at, done_before, note_before = self._last.get(step, (float("-inf"), -1.0, ""))
        if (done < total and now - at < 0.1) or (done, note) == (done_before, note_before):
            return
        self._last[step] = (now, done, note)
        line = orjson.dumps({"step": step, "done": done, "total": total, "note": note}).decode()
        print(f"{MARK}{line}", file=self._out, flush=True)


def parse(line: str) -> tuple[str, float, float, str] | None:
    """The (step, done, total, note) of a marked line, or None for any other line."""
    if not line.startswith(MARK):
        return None
    try:
        record = orjson.loads(line[1:])
        return record["step"], float(record["done"]), float(record["total"]), record["note"]
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return None
