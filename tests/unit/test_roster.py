"""The list of shared models."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidepool.errors import StorageError
from tidepool.serve.roster import Roster
from tidepool.spec import ServeSpec

SHARED = ServeSpec(placement="shared", slo_p99_ms=20)


def test_models_come_and_go(tmp_path: Path) -> None:
    roster = Roster(tmp_path / "shared.json")
    assert roster.load() == {}
    for name in ("a", "b", "a"):
        roster.add(name, SHARED)
    assert {name: ServeSpec(**section) for name, section in roster.load().items()} == {"a": SHARED, "b": SHARED}
    assert (roster.remove("a"), roster.remove("a"), list(roster.load())) == (True, False, ["b"])
    roster.clear()
    assert roster.load() == {}


def test_a_file_that_is_no_list_is_reported(tmp_path: Path) -> None:
    (tmp_path / "shared.json").write_text("{")
    with pytest.raises(StorageError, match=r"shared\.json"):
        Roster(tmp_path / "shared.json").load()
