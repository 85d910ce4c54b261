"""The record of runs: which one to go on with."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path

import pytest
from pyarrow import fs

from tidepool.checkpoint import Checkpoint
from tidepool.errors import StorageError, TrainingError
from tidepool.spec import Spec
from tidepool.train import tracking

FINAL = Checkpoint("/somewhere/step-000000000009", 9, "d" * 64)


@pytest.fixture
def spec() -> Spec:
    return Spec.model_validate({"name": "digits", "recipe": "a:B", "data": {"source": "x"}})


@pytest.fixture(params=["folder", "bucket"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "runs") if request.param == "folder" else f"fsspec+memory:///{uuid.uuid4().hex}/runs"


def begin(runs: str, spec: Spec, data: str = "data") -> tracking.Run:
    return tracking.begin(runs, spec, f"/{data}", data)


def with_train(spec: Spec, **fields: object) -> Spec:
    return spec.model_copy(update={"train": spec.train.model_copy(update=fields)})


def test_an_unfinished_run_is_gone_on_with(runs: str, spec: Spec) -> None:
    first = begin(runs, spec)
    assert first.run_id == f"{tracking.run_digest(spec)[:8]}-1"
    assert begin(runs, spec) == first


def test_a_complete_run_is_left_alone(runs: str, spec: Spec) -> None:
    first = begin(runs, spec)
    tracking.complete(first, FINAL, {"loss": 0.1})
    second = begin(runs, spec)
    assert second.run_id == f"{first.run_id[:-1]}2"
    assert second.state == "running"


def test_other_data_or_another_spec_is_another_run(runs: str, spec: Spec) -> None:
    first = begin(runs, spec)
    assert begin(runs, spec, data="other").run_id == f"{first.run_id[:-1]}2"
    longer = with_train(spec, epochs=99)
    assert begin(runs, longer).run_id == f"{tracking.run_digest(longer)[:8]}-1" != first.run_id


def test_what_does_not_touch_the_result_is_the_same_run(spec: Spec) -> None:
    pruned = spec.model_copy(update={"export": spec.export.model_copy(update={"prune": 0.5})})
    wider = with_train(spec, num_workers=(4, 8), accelerator="GPU", checkpoint_every_s=1.0, max_failures=9)
    assert {tracking.run_digest(each) for each in (spec, pruned, wider)} == {tracking.run_digest(spec)}
    assert len({tracking.run_digest(with_train(spec, seed=seed)) for seed in range(3)}) == 3


def test_the_latest_complete_run_is_found_with_its_evaluation(runs: str, spec: Spec) -> None:
    digest = tracking.run_digest(spec)
    assert tracking.latest_complete(runs, "digits", digest) is None
    run = begin(runs, spec)
    assert tracking.latest_complete(runs, "digits", digest) is None
    done = tracking.complete(run, FINAL, {"loss": 0.1})
    tracking.evaluated(done, {"accuracy": 0.9})
    found = tracking.latest_complete(runs, "digits", digest)
    assert found is not None
    assert (found.checkpoint, found.metrics, found.evaluation) == (FINAL, {"loss": 0.1}, {"accuracy": 0.9})
    assert tracking.latest_complete(runs, "digits", "0" * 64) is None


def test_an_unfinished_run_has_no_final_checkpoint(runs: str, spec: Spec) -> None:
    with pytest.raises(TrainingError, match="isn't complete"):
        _ = begin(runs, spec).checkpoint


def test_other_folders_beside_the_runs_do_no_harm(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "digits" / "staging").mkdir(parents=True)
    (tmp_path / "digits" / "notes.txt").write_text("mine")
    run = begin(str(tmp_path), spec)
    assert begin(str(tmp_path), spec) == run


def test_a_damaged_record_is_passed_over_and_its_folder_left_alone(
    tmp_path: Path, spec: Spec, caplog: pytest.LogCaptureFixture
) -> None:
    first = begin(str(tmp_path), spec)
    (Path(first.uri) / "run.json").write_text("{")
    with caplog.at_level(logging.WARNING):
        assert begin(str(tmp_path), spec).run_id == f"{first.run_id[:-1]}2"
    assert first.uri in caplog.text
    assert (Path(first.uri) / "run.json").read_text() == "{"


def test_records_that_cannot_be_read_now_are_no_reason_to_begin_anew(tmp_path: Path, spec: Spec) -> None:
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(StorageError, match="can't"):
        begin(str(tmp_path / "runs"), spec)


def test_the_bucket_of_these_tests_is_one() -> None:
    """`fsspec+memory://` goes the way of `s3://`: through pyarrow.fs, and not as a local path."""
    store, _ = fs.FileSystem.from_uri("fsspec+memory:///x")
    assert not isinstance(store, fs.LocalFileSystem)
