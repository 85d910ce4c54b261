"""How verbs print: a table for people, JSON for programs."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import typer

JSON = typer.Option(False, "--json", help="Print JSON.")
"""The option of every verb that reports."""


def as_json(document: Any) -> None:
    """Print indented JSON on stdout."""
    print(json.dumps(document, indent=2, default=str))


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """Print a table; one line says so if there are no rows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not rows:
        print(f"no {title or 'rows'}")
        return
    grid = Table(*headings, title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    Console().print(grid)


def when(seconds: float | None) -> str:
    """Seconds since the epoch as local time, or nothing."""
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
