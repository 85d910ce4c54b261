"""Where an installation keeps things."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidepool.errors import SpecError
from tidepool.settings import Settings


def test_a_relative_storage_counts_from_where_the_command_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings(storage_url="store").storage("runs") == f"{tmp_path}/store/runs"
    assert Settings(storage_url=f"file://{tmp_path}/store").storage_url == f"{tmp_path}/store"
    assert Settings(storage_url="~/store").storage_url == str(Path.home() / "store")


def test_buckets_and_no_storage_at_all_stay_as_they_are(home: Path) -> None:
    assert Settings(storage_url="s3://bucket/x").storage("runs") == "s3://bucket/x/runs"
    assert Settings().storage("runs") == str(home / "runs")
    assert Settings(storage_url="").storage("runs") == str(home / "runs")


def test_workers_get_the_absolute_storage(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tidepool.cluster.environment import process_environment

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TIDEPOOL_STORAGE_URL", "store")
    variables = process_environment({"TIDEPOOL_STORAGE_URL": "store"}, {}, Settings(), "id", tmp_path)
    assert variables["TIDEPOOL_STORAGE_URL"] == str(tmp_path / "store")


@pytest.mark.parametrize(("name", "value"), [("STANDBY", "lots"), ("STANDBY", "-1"), ("SHARED_MB", "0")])
def test_a_variable_that_cannot_be_is_named(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"TIDEPOOL_{name}", value)
    with pytest.raises(SpecError, match=rf"^TIDEPOOL_{name} is not valid. Seen: {value}. Allowed: Input should be "):
        Settings()
