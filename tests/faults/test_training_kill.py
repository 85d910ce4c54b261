"""Train workers and drivers are killed in the middle: the run ends with the bits that it would have ended with."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil
import pytest

from tidepool.data.preprocess import PreparedData, prepare
from tidepool.recipe import load_recipe
from tidepool.spec import load_spec
from tidepool.telemetry import progress
from tidepool.train.trainer import TrainResult, fit

DIGITS = Path(__file__).parents[2] / "deployments/digits/spec.yaml"
SPEC = load_spec(DIGITS, ["train.epochs=20", "train.checkpoint_every_s=0.2"])

DRIVER = """
import sys, ray
from tidepool.data.preprocess import open_prepared
from tidepool.spec import Spec
from tidepool.telemetry.progress import LineProgress
from tidepool.train.trainer import fit

address, spec, data, runs = sys.argv[1:]
ray.init(address=address, log_to_driver=False)
fit(Spec.model_validate_json(spec), open_prepared(data), runs, LineProgress())
"""


@pytest.fixture(scope="module")
def data(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    return prepare(SPEC, load_recipe(SPEC.recipe, SPEC.params), str(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def undisturbed(data: PreparedData, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return fit(SPEC, data, str(tmp_path_factory.mktemp("runs")))


def test_a_killed_worker_changes_nothing_in_the_result(
    undisturbed: TrainResult, data: PreparedData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    killed: list[psutil.Process] = []

    def kill_once(step: str, done: float, total: float, note: str = "") -> None:
        if not killed and done >= 60 and saved(tmp_path):
            killed.append(train_workers()[-1])
            killed[0].kill()

    with caplog.at_level(logging.WARNING):
        disturbed = fit(SPEC, data, str(tmp_path), kill_once)
    assert killed
    assert "a worker failed: all go on from step" in caplog.text
    assert (disturbed.step, disturbed.resumed_from) == (undisturbed.step, None)
    assert disturbed.checkpoint.digest == undisturbed.checkpoint.digest, "weights, optimizer and all"


def test_a_run_whose_driver_was_killed_is_resumed_by_the_next_and_says_so(
    undisturbed: TrainResult, data: PreparedData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import ray

    arguments = [ray.get_runtime_context().gcs_address, SPEC.model_dump_json(), data.uri, str(tmp_path)]
    with subprocess.Popen([sys.executable, "-c", DRIVER, *arguments], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout
        assert any(done >= 60 and saved(tmp_path) for done in steps(driver.stdout)), "it ended by itself"
        driver.kill()

    told: list[str] = []
    with caplog.at_level(logging.WARNING):
        result = fit(SPEC, data, str(tmp_path), lambda step, done, total, note="": told.append(note))
    assert result.resumed_from is not None
    assert 0 < result.resumed_from < result.step
    assert result.run_id == undisturbed.run_id, "the first run of this spec below its folder, not a second one"
    assert told[0].startswith(f"resuming run {result.run_id}")
    assert told[0] in caplog.text
    assert result.checkpoint.digest == undisturbed.checkpoint.digest


def saved(runs: Path) -> bool:
    """Whether a checkpoint is there to go on from."""
    return any(runs.glob("*/*/checkpoints/step-*"))


def steps(lines: Iterable[str]) -> Iterable[float]:
    """The steps that a driver tells of."""
    return (news[1] for line in lines if (news := progress.parse(line)))


def train_workers() -> list[psutil.Process]:
    """The train workers of this session's cluster."""
    return [process for process in psutil.Process().children(recursive=True) if "RayTrainWo" in name(process)]


def name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:  # it ended meanwhile
        return ""
