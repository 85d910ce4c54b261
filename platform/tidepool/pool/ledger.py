"""What moved, when, why, and what it cost: an append-only file of JSON lines, one for each thing that happened.

A move has one entry and a life in phases: `promised`, then `released` (the processes are gone) or `granted` (the taker
holds the accelerators) or both, then `done` or `aborted`. A phase is on the disk before it is acted upon, so that after
a crash `unfinished()` names everything that was under way. A line that a crash cut off never happened: it is dropped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tidepool import storage
from tidepool.errors import ClusterError, CorruptionError
from tidepool.pool.moves import Move

Phase = Literal["promised", "released", "granted", "done", "aborted"]
PHASES: tuple[Phase, ...] = ("promised", "released", "granted", "done", "aborted")
FINAL: tuple[Phase, ...] = ("done", "aborted")


@dataclass(frozen=True)
class Entry:
    """One move and what became of it. Times in seconds since the epoch."""

    id: str
    kind: str
    """The move: "shrink", "park", "grow", "resume", "grant", "withdraw", "buy", "return"."""
    why: str
    at: Mapping[Phase, float]
    """When each of its phases began, in order."""
    run: str | None = None
    app: str | None = None
    node: str | None = None
    was: int | None = None
    to: int | None = None
    """Workers of the run before and after."""
    accelerators: float = 0.0
    pause_s: float = 0.0
    """Seconds for which training stood still."""
    steps_redone: int = 0
    outcome: str = ""

    @property
    def phase(self) -> Phase:
        """Where it is now."""
        return list(self.at)[-1]

    @property
    def release_s(self) -> float | None:
        """Seconds from the promise until the accelerators' processes were gone."""
        return self.at["released"] - self.at["promised"] if "released" in self.at else None

    @property
    def seconds(self) -> float:
        """Seconds from the promise until where it is now."""
        return self.at[self.phase] - self.at["promised"]


@dataclass(frozen=True)
class Totals:
    """The sums of some entries."""

    moves: Mapping[str, int] = field(default_factory=dict)
    """By kind."""
    aborted: int = 0
    accelerators_yielded: float = 0.0
    release_s: tuple[float, ...] = ()
    """Each release, in order of time."""
    pause_s: float = 0.0
    longest_pause_s: float = 0.0
    steps_redone: int = 0


class Ledger:
    """The ledger at a path, for its one writer. Others `read` it.

    Raises:
        CorruptionError: a line before the last one is damaged.
        StorageError: the file can't be read or written.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        with storage.explained("write", path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            self._entries, self._bytes = _load(path)
            os.truncate(path, self._bytes)

    def promise(self, move: Move) -> Entry:
        """A new entry for a move that was decided."""
        facts = {name: value for name, value in dataclasses.asdict(move).items() if name in _FACTS}
        return self._append({"id": str(len(self._entries) + 1), "phase": "promised", "kind": move.kind, **facts})

    def advance(self, entry: str, phase: Phase, **costs: float | str) -> Entry:
        """The entry in its next phase; `costs` are any of `pause_s`, `steps_redone`, `outcome`.

        Raises:
            ClusterError: there is no such entry, or it is past that phase.
        """
        found = self._entries.get(entry)
        if found is None:
            raise ClusterError("no such ledger entry", seen=entry)
        if found.phase in FINAL or PHASES.index(phase) <= PHASES.index(found.phase):
            raise ClusterError(f"ledger entry {entry} is past that phase", seen=phase, allowed=f"after {found.phase}")
        return self._append({"id": entry, "phase": phase, **costs})

    def unfinished(self) -> list[Entry]:
        """Entries that are neither done nor aborted, oldest first."""
        return [entry for entry in self._entries.values() if entry.phase not in FINAL]

    def entries(self, since: float = 0.0, run: str | None = None, app: str | None = None) -> list[Entry]:
        """Entries promised at `since` or later, of one run or application if named, oldest first."""
        return select(self._entries.values(), since, run, app)

    def _append(self, record: dict[str, Any]) -> Entry:
        record["at"] = self._clock()
        after = _after(self._entries.get(record["id"]), record)
        line = json.dumps(record, allow_nan=False).encode() + b"\n"
        with storage.explained("write", self._path), self._path.open("r+b") as file:
            file.seek(self._bytes)
            file.write(line)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(line)
        self._entries[after.id] = after
        return after


def read(path: Path) -> list[Entry]:
    """The entries of a ledger that another process may be writing, oldest first; none if there is no file.

    Raises:
        CorruptionError: a line before the last one is damaged.
    """
    return list(_load(path)[0].values()) if path.exists() else []


def select(entries: Iterable[Entry], since: float = 0.0, run: str | None = None, app: str | None = None) -> list[Entry]:
    """Those promised at `since` or later, of one run or application if named."""
    return [
        entry
        for entry in entries
        if entry.at["promised"] >= since and run in (None, entry.run) and app in (None, entry.app)
    ]


def totals(entries: Iterable[Entry]) -> Totals:
    """What the entries add up to."""
    chosen = list(entries)
    done = [entry for entry in chosen if entry.phase != "aborted"]
    return Totals(
        moves=dict(Counter(entry.kind for entry in chosen)),
        aborted=len(chosen) - len(done),
        accelerators_yielded=sum(entry.accelerators for entry in done if entry.kind in ("shrink", "park")),
        release_s=tuple(entry.release_s for entry in done if entry.release_s is not None),
        pause_s=sum(entry.pause_s for entry in done),
        longest_pause_s=max((entry.pause_s for entry in done), default=0.0),
        steps_redone=sum(entry.steps_redone for entry in done),
    )


_FACTS = {"why", "run", "app", "node", "was", "to", "accelerators"}
_COSTS = {"pause_s", "steps_redone", "outcome"}


def _after(before: Entry | None, record: Mapping[str, Any]) -> Entry:
    """The entry that a line makes of the one before it."""
    at = {**(before.at if before else {}), record["phase"]: record["at"]}
    if before is None:
        facts = {name: record[name] for name in _FACTS if name in record}
        return Entry(record["id"], record["kind"], at=at, **facts)
    return dataclasses.replace(before, at=at, **{name: record[name] for name in _COSTS if name in record})


def _load(path: Path) -> tuple[dict[str, Entry], int]:
    """The entries of a ledger, and how many of its bytes are whole lines."""
    with storage.explained("read", path):
        lines = path.read_bytes().splitlines(keepends=True)
    entries: dict[str, Entry] = {}
    size = 0
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line) if line.endswith(b"\n") else None
            if record is None:
                break
            entries[record["id"]] = _after(entries.get(record["id"]), record)
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                break
            raise CorruptionError(
                f"line {number} of the ledger {path} is damaged",
                seen=type(error).__name__,
                allowed="a JSON object",
                remedy="restore it from a copy, or move it away to begin a new one",
            ) from None
        size += len(line)
    return entries, size
