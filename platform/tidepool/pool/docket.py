"""The ledger's entries that are under way, by run and by reservation."""

from __future__ import annotations

from tidepool.pool.ledger import FINAL, PHASES, Entry, Ledger, Phase
from tidepool.pool.moves import Buy, Grant, Move, Resize, Return, Withdraw
from tidepool.pool.state import Snapshot

UP, DOWN = ("grow", "resume"), ("shrink", "park")


class Docket:
    """Writes moves into a ledger, and takes them from phase to phase."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._resizes: dict[str, list[Entry]] = {}
        self._grants: dict[str, Entry] = {}
        self._bought: list[Entry] = []
        self._returned: dict[str, Entry] = {}
        """By node."""

    def enter(self, move: Move) -> Entry:
        """A move is promised."""
        entry = self._ledger.promise(move)
        match move:
            case Resize():
                self._resizes.setdefault(move.run, []).append(entry)
            case Grant():
                self._grants[entry.id] = entry
            case Buy():
                self._bought.append(entry)
            case Return():
                self._returned[move.node] = entry
            case Withdraw():
                self._grants.pop(move.reservation, None)
                self._ledger.advance(move.reservation, "aborted", outcome="no longer asked for")
                self._ledger.advance(entry.id, "done")
        return entry

    def advance(self, run: str, phase: Phase, *kinds: str, **costs: float | str) -> None:
        """Take the run's entries of these kinds to a phase, if they aren't past it."""
        entries = self._resizes.get(run, [])
        for index, entry in enumerate(entries):
            if entry.kind in kinds and PHASES.index(entry.phase) < PHASES.index(phase):
                entries[index] = self._ledger.advance(entry.id, phase, **costs)
        self._resizes[run] = [entry for entry in entries if entry.phase not in FINAL]

    def close(self, before: Snapshot, after: Snapshot) -> None:
        """What the cluster has made true: replicas have come, or somebody else took their place; machines too."""
        self._close_grants(before, after)
        awaited = {machine.name.split(".")[0] for machine in after.coming}
        for entry in (entry for entry in self._bought if entry.id not in awaited):
            self._ledger.advance(entry.id, "granted")
            self._ledger.advance(entry.id, "done")
        self._bought = [entry for entry in self._bought if entry.id in awaited]
        for node in self._returned.keys() - {node.name for node in after.nodes}:
            entry = self._returned.pop(node)
            self._ledger.advance(entry.id, "released")
            self._ledger.advance(entry.id, "done")

    def _close_grants(self, before: Snapshot, after: Snapshot) -> None:
        had, has = ({app.name: app.replicas for app in side.apps} for side in (before, after))
        came = {name: count - had.get(name, 0) for name, count in has.items()}
        kept = {reservation.id for reservation in after.reservations}
        for reservation in (old for old in before.reservations if old.id not in kept):
            entry = self._grants.pop(reservation.id)
            if came.get(reservation.app, 0) > 0:
                came[reservation.app] -= 1
                self._ledger.advance(entry.id, "granted")
                self._ledger.advance(entry.id, "done")
            else:
                self._ledger.advance(entry.id, "aborted", outcome="its place was taken")

    def end(self, run: str) -> None:
        """A run is over, and what it had under way with it."""
        self.advance(run, "aborted", *UP, *DOWN, outcome="the run is over")
        self._resizes.pop(run, None)
