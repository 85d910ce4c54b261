"""How an alias moved, and where a rollback leads: pure decisions over a log of moves.

A promotion puts a version on top of those that the alias named before; a rollback takes the top one off. So after
promoting 1, 2, 3, one rollback leads to 2, a second one to 1, and a third has nowhere to go.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

from tidepool.registry.entities import Move, Shift

ROOM = 5000
"""Characters of an MLflow tag."""
KEPT = 100
"""Moves that a stored log keeps: for so many one tag has room."""
LONGEST_WHY = 600
"""Characters of a shift's reason that are stored."""


def standing(moves: Sequence[Move]) -> list[int]:
    """The versions that rollbacks would lead through, oldest first; the last is the one that the alias names.

    A log whose oldest moves were dropped gives the upper part of what the whole log gives.
    """
    stack: list[int] = []
    for move in moves:
        if move.rollback:
            stack = stack[:-1]
            while stack and stack[-1] != move.version:
                stack.pop()
        if not (move.rollback and stack):
            stack.append(move.version)
    return stack


def caught_up(moves: Sequence[Move], current: int | None, now: float) -> list[Move]:
    """The log, with the move that somebody made past tidepool, e.g. in MLflow's UI: the alias names `current`."""
    if current is None or standing(moves)[-1:] == [current]:
        return list(moves)
    return [*moves, Move(current, now)]


def previous(moves: Sequence[Move], existing: Collection[int]) -> int | None:
    """The version that a rollback leads to: the nearest one below the top that differs from it and still exists."""
    *below, top = standing(moves)
    return next((version for version in reversed(below) if version in existing and version != top), None)


def dumps(moves: Sequence[Move]) -> str:
    """The newest moves of the log as compact JSON, times in whole seconds."""
    kinds = {True: "rollback", False: "promote"}
    rows = [[move.version, round(move.at), kinds[move.rollback]] for move in moves[-KEPT:]]
    return json.dumps(rows, separators=(",", ":"))


def loads(text: str) -> tuple[Move, ...]:
    """The inverse of `dumps`."""
    return tuple(Move(version, at, kind == "rollback") for version, at, kind in json.loads(text))


def dumps_shifts(shifts: Sequence[Shift]) -> str:
    """As many of the newest shifts as one tag has room for, as compact JSON; times in milliseconds."""
    rows = [[shift.version, shift.percent, round(shift.at, 3), shift.why[:LONGEST_WHY]] for shift in shifts]
    while len(text := json.dumps(rows, separators=(",", ":"))) > ROOM:
        del rows[0]
    return text


def loads_shifts(text: str) -> tuple[Shift, ...]:
    """The inverse of `dumps_shifts`."""
    return tuple(Shift(*row) for row in json.loads(text))
