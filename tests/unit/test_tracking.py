"""The record of runs: which one to go on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidepool.checkpoint import Checkpoint
from tidepool.spec import Spec
from tidepool.train import tracking

FINAL = Checkpoint("/somewhere/step-000000000009", 9, "d" * 64)


@pytest.fixture
def spec() -> Spec:
    return Spec.model_validate({"name": "digits", "recipe": "a:B", "data": {"source": "x"}})


def begin(tmp_path: Path, spec: Spec, data: str = "data") -> tuple[tracking.Run, bool]:
    return tracking.begin(str(tmp_path), spec, f"/{data}", data)


def test_an_unfinished_run_is_gone_on_with(tmp_path: Path, spec: Spec) -> None:
    first, had_begun = begin(tmp_path, spec)
    assert not had_begun
    assert begin(tmp_path, spec) == (first, True)


def test_a_complete_run_is_left_alone(tmp_path: Path, spec: Spec) -> None:
    first, _ = begin(tmp_path, spec)
    tracking.complete(first, FINAL, {"loss": 0.1})
    second, had_begun = begin(tmp_path, spec)
    assert not had_begun
    assert second.run_id == first.run_id[:-1] + "2"


def test_other_data_or_another_spec_is_another_run(tmp_path: Path, spec: Spec) -> None:
    first, _ = begin(tmp_path, spec)
    assert not begin(tmp_path, spec, data="other")[1]
    longer = spec.model_copy(update={"train": spec.train.model_copy(update={"epochs": 99})})
    other, had_begun = begin(tmp_path, longer)
    assert not had_begun
    assert other.digest != first.digest


def test_what_does_not_touch_training_is_the_same_run(spec: Spec) -> None:
    pruned = spec.model_copy(update={"export": spec.export.model_copy(update={"prune": 0.5})})
    assert tracking.run_digest(pruned) == tracking.run_digest(spec)


def test_the_latest_complete_run_is_found_with_its_evaluation(tmp_path: Path, spec: Spec) -> None:
    digest = tracking.run_digest(spec)
    assert tracking.latest_complete(str(tmp_path), "digits", digest) is None
    run, _ = begin(tmp_path, spec)
    assert tracking.latest_complete(str(tmp_path), "digits", digest) is None
    done = tracking.complete(run, FINAL, {"loss": 0.1})
    tracking.evaluated(done, {"accuracy": 0.9})
    found = tracking.latest_complete(str(tmp_path), "digits", digest)
    assert found is not None
    assert (found.checkpoint, found.evaluation) == (FINAL, {"accuracy": 0.9})


def test_a_damaged_record_counts_for_none(tmp_path: Path, spec: Spec) -> None:
    run, _ = begin(tmp_path, spec)
    (Path(run.uri) / "run.json").write_text("{")
    assert begin(tmp_path, spec)[1] is False
