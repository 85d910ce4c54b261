"""How verbs print: a table for people, JSON for programs, what takes a while, and what to type next."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer

JSON = typer.Option(False, "--json", help="Print JSON.")
"""The option of every verb that reports."""
BESIDE = 2
"""Spaces beside each column of a table."""


def as_json(document: Any) -> None:
    """Print indented JSON on stdout."""
    print(json.dumps(document, indent=2, default=str))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print a table; one line says so if there are no rows. Where it is narrow, words go on the next line, whole."""
    from rich import box
    from rich.console import Console
    from rich.table import Column, Table

    if not rows:
        print(f"no {title or 'rows'}")
        return
    lines = [list(headings), *([str(cell) for cell in row] for row in rows)]
    console = Console()
    fitted = zip(headings, widths(lines, console.width), strict=True)
    columns = [Column(heading, overflow="fold", width=width) for heading, width in fitted]
    grid = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for line in lines[1:]:
        grid.add_row(*line)
    console.print(grid)


def widths(lines: Sequence[Sequence[str]], room: int) -> list[int]:
    """Widths of a table's columns in a terminal `room` wide: what they hold, or less where that breaks no word.

    >>> widths([["name", "says"], ["x", "one two"]], 13)
    [4, 4]
    """
    columns = list(zip(*lines, strict=True))
    wanted = [max(map(len, column)) for column in columns]
    least = [max((len(word) for cell in column for word in cell.split()), default=0) for column in columns]
    over = sum(wanted) + BESIDE * len(columns) + 1 - room
    while over > 0 and wanted != least:
        loosest = max(range(len(columns)), key=lambda at: wanted[at] - least[at])
        wanted[loosest] -= 1
        over -= 1
    return wanted


@contextlib.contextmanager
def waiting(what: str) -> Iterator[None]:
    """Say on stderr what is under way: on a terminal for as long as it takes, elsewhere once, as a line."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with console.status(what):
            yield
    else:
        print(what, file=sys.stderr, flush=True)
        yield


def command() -> str:
    """What calls this tidepool in the user's shell: its name where PATH leads to it, else the path of its script."""
    script, found = Path(sys.executable).with_name("tidepool"), shutil.which("tidepool")
    if not script.exists() or (found and script.samefile(found)):
        return "tidepool"
    return shlex.quote(os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script))


def when(seconds: float | None) -> str:
    """Seconds since the epoch as local time, or nothing."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
