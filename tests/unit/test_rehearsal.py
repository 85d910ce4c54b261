"""A candidate is compared with the champion over what was logged."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidepool.artifact import open_artifact
from tidepool.errors import DataError, GateError
from tidepool.recipe import Signature, TensorSpec
from tidepool.registry.entities import ModelVersion
from tidepool.serve import rehearsal
from tidepool.serve.masking import Mask
from tidepool.serve.rehearsal import Report, compare_file
from tidepool.serve.requestlog import Record, RequestLog, logged_files
from tidepool.spec import CompareSpec

Version = Callable[[int], ModelVersion]
pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def version(make_artifact: Callable[..., Path]) -> Version:
    """Makes a version whose answer to an empty image is its favourite; to a bright one all give the same."""

    @functools.cache
    def make(favourite: int) -> ModelVersion:
        folder = make_artifact(favourite)
        digest = open_artifact(str(folder)).digest
        return ModelVersion("digits", favourite, (), str(folder), digest, 0, {}, {}, {}, {}, 0.0)

    return make


def logged(folder: Path, **other: Any) -> None:
    """A log in which alice sent ten empty images, and bob ten bright ones."""
    log = RequestLog(str(folder), 100)
    bright = 1e6 * np.random.default_rng(0).random((1, 64)).astype(np.float32)
    for number in range(20):
        inputs = other.get("inputs", {"image": np.zeros((1, 64), np.float32) if number < 10 else bright})
        log.offer(Record(0.0, f"r{number}", "1", "d", inputs, 1, Mask({}), key="alice" if number < 10 else "bob"))
    log.close()


def rehearsed(folder: Path, champion: ModelVersion, candidate: ModelVersion) -> Report:
    files = logged_files(str(folder))
    seen = [compare_file(str(folder), file.path, champion, candidate, CompareSpec()) for file in files]
    return rehearsal._report(champion.version, candidate.version, sum(seen, Counter()))


def test_disagreement_is_reported_by_slice_the_worst_first(tmp_path: Path, version: Version) -> None:
    logged(tmp_path)
    report = rehearsed(tmp_path, version(1), version(2))
    assert (report.whole.rows, report.whole.disagreed, report.whole.failed, report.skipped) == (20, 10, 0, 0)
    assert [(part.column, part.value, part.disagreement) for part in report.slices] == [
        ("key", "alice", 1.0),
        ("key", "bob", 0.0),
    ]
    assert report.to_json()["disagreement"] == 0.5
    with pytest.raises(GateError, match=r"0\.5000, 10 of 20 rows"):
        report.check(0.4)
    report.check(0.5)


def test_a_version_agrees_with_itself(tmp_path: Path, version: Version) -> None:
    logged(tmp_path)
    assert rehearsed(tmp_path, version(1), version(1)).whole.disagreement == 0


def test_rows_without_the_models_inputs_are_skipped(tmp_path: Path, version: Version) -> None:
    logged(tmp_path / "old", inputs={"picture": np.zeros((1, 8), np.float32)})
    logged(tmp_path / "new")
    report = rehearsed(tmp_path, version(1), version(2))
    assert (report.whole.rows, report.skipped) == (20, 20)


def test_rows_on_which_the_champion_fails_are_skipped(tmp_path: Path, version: Version) -> None:
    logged(tmp_path / "wrong", inputs={"image": np.zeros((1, 9), np.float32)})
    logged(tmp_path / "right")
    report = rehearsed(tmp_path, version(1), version(2))
    assert (report.whole.rows, report.skipped) == (20, 20)


def test_a_file_that_the_logs_bound_has_taken_meanwhile_is_passed_over(tmp_path: Path, version: Version) -> None:
    gone = str(tmp_path / "version=1" / "gone.parquet")
    assert compare_file(str(tmp_path), gone, version(1), version(2), CompareSpec()) == Counter()


def test_a_column_of_many_values_makes_no_slices(tmp_path: Path, version: Version) -> None:
    logged(tmp_path)
    log = RequestLog(str(tmp_path), 100)
    for number in range(30):
        inputs = {"image": np.zeros((1, 64), np.float32)}
        log.offer(Record(0.0, f"s{number}", "1", "d", inputs, 1, Mask({}), key=f"key {number}"))
    log.close()
    report = rehearsed(tmp_path, version(1), version(2))
    assert report.whole.rows == 50
    assert "key" not in {part.column for part in report.slices}


def test_inputs_that_are_not_in_the_log_are_named() -> None:
    note = TensorSpec("note", "BYTES", (-1,))
    with pytest.raises(DataError, match=r"some are sensitive\. Seen: note"):
        rehearsal._check_inputs(Signature((note,), (), {"note": "hash"}))
    rehearsal._check_inputs(Signature((note,), (), {"note": r"pattern:\d+"}))
