"""The ledger of moves: on the disk before it is acted upon, whole after any crash."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from tidepool.errors import ClusterError, CorruptionError
from tidepool.pool.ledger import Ledger, read, select, totals
from tidepool.pool.moves import Grant, Grow, Shrink

SHRINK = Shrink("serving lacks one", "digits-7", 4, 3, {"a": 1}, 1.0)
GRANT = Grant("digits asks for 2", "digits", "a", 1.0, 1.0)
GROW = Grow("idle", "digits-7", 3, 4, {"a": 1}, 1.0)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    clock = count(1000)
    return Ledger(tmp_path / "pool" / "ledger.jsonl", lambda: float(next(clock)))


def hand_over(ledger: Ledger) -> None:
    shrink, grant = ledger.promise(SHRINK), ledger.promise(GRANT)
    ledger.advance(shrink.id, "released", pause_s=0.053)
    ledger.advance(grant.id, "granted")
    ledger.advance(shrink.id, "done")
    ledger.advance(grant.id, "done")


def test_an_entry_says_what_moved_why_and_what_it_cost(ledger: Ledger) -> None:
    hand_over(ledger)
    shrink, grant = ledger.entries()
    assert (shrink.kind, shrink.run, shrink.was, shrink.to, shrink.accelerators) == ("shrink", "digits-7", 4, 3, 1.0)
    assert (shrink.why, shrink.pause_s, shrink.release_s, shrink.phase) == ("serving lacks one", 0.053, 2.0, "done")
    assert (grant.kind, grant.app, grant.node, grant.phase) == ("grant", "digits", "a", "done")


def test_a_ledger_survives_a_restart_and_counts_on(ledger: Ledger, tmp_path: Path) -> None:
    hand_over(ledger)
    again = Ledger(tmp_path / "pool" / "ledger.jsonl")
    assert again.entries() == ledger.entries()
    assert again.promise(GROW).id == "3"
    assert [entry.id for entry in read(tmp_path / "pool" / "ledger.jsonl")] == ["1", "2", "3"]


def test_what_was_under_way_at_a_crash_is_named(ledger: Ledger, tmp_path: Path) -> None:
    ledger.advance(ledger.promise(SHRINK).id, "released")
    ledger.promise(GRANT)
    ledger.advance(ledger.promise(GROW).id, "aborted", outcome="the node is gone")
    again = Ledger(tmp_path / "pool" / "ledger.jsonl")
    assert [(entry.id, entry.phase) for entry in again.unfinished()] == [("1", "released"), ("2", "promised")]
    assert again.entries()[2].outcome == "the node is gone"


def test_a_line_cut_off_anywhere_is_dropped_and_the_ledger_goes_on(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "pool" / "ledger.jsonl"
    ledger.promise(SHRINK)
    whole = path.read_bytes()
    ledger.promise(GRANT)
    both = path.read_bytes()
    for length in range(len(whole), len(both)):
        path.write_bytes(both[:length])
        assert [entry.kind for entry in read(path)] == ["shrink"]
        torn = Ledger(path)
        assert path.read_bytes() == whole
        assert torn.promise(GROW).id == "2"


def test_damage_before_the_last_line_is_reported_with_its_line(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "pool" / "ledger.jsonl"
    hand_over(ledger)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], lines[1][:20] + b"\n", *lines[2:]]))
    with pytest.raises(CorruptionError, match="line 2 of the ledger"):
        Ledger(path)


def test_a_phase_never_comes_twice_nor_goes_back(ledger: Ledger) -> None:
    entry = ledger.promise(SHRINK)
    ledger.advance(entry.id, "released")
    with pytest.raises(ClusterError, match="past that phase"):
        ledger.advance(entry.id, "released")
    ledger.advance(entry.id, "aborted")
    with pytest.raises(ClusterError, match="past that phase"):
        ledger.advance(entry.id, "done")
    with pytest.raises(ClusterError, match="no such ledger entry"):
        ledger.advance("99", "done")


def test_entries_are_found_by_time_run_and_application(ledger: Ledger) -> None:
    hand_over(ledger)
    ledger.promise(GROW)
    assert [entry.kind for entry in ledger.entries(run="digits-7")] == ["shrink", "grow"]
    assert [entry.kind for entry in ledger.entries(app="digits")] == ["grant"]
    assert [entry.kind for entry in select(ledger.entries(), since=1002.0)] == ["grow"]


def test_totals_add_up_what_was_not_aborted(ledger: Ledger) -> None:
    hand_over(ledger)
    ledger.advance(ledger.promise(SHRINK).id, "aborted", pause_s=9.0)
    ledger.advance(ledger.promise(SHRINK).id, "released", pause_s=0.1, steps_redone=2)
    sums = totals(ledger.entries())
    assert sums.moves == {"shrink": 3, "grant": 1}
    assert (sums.aborted, sums.accelerators_yielded, sums.release_s) == (1, 2.0, (2.0, 1.0))
    assert (sums.pause_s, sums.longest_pause_s, sums.steps_redone) == (pytest.approx(0.153), 0.1, 2)


def test_no_file_is_an_empty_ledger_to_a_reader(tmp_path: Path) -> None:
    assert read(tmp_path / "none.jsonl") == []
