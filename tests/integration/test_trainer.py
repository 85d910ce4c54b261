"""Training runs on a real Ray cluster."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tidepool import checkpoint
from tidepool.data.preprocess import PreparedData, prepare
from tidepool.errors import ClusterError, TrainingError
from tidepool.recipe import load_recipe
from tidepool.spec import Spec, load_spec
from tidepool.train import tracking
from tidepool.train.board import claimed
from tidepool.train.loop import Trainee
from tidepool.train.trainer import fit

DIGITS = Path(__file__).parents[2] / "deployments/digits/spec.yaml"

ON_LOGICAL_GPUS = """
import sys, ray
from tidepool.data.preprocess import open_prepared
from tidepool.spec import load_spec
from tidepool.train.trainer import fit

spec, data, runs = sys.argv[1:]
ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
told = []
result = fit(load_spec(spec, ["train.epochs=1"]), open_prepared(data), runs, lambda *news: told.append(news))
print(told[0][3], "->", result.step)
"""


def spec_with(*overrides: str) -> Spec:
    return load_spec(DIGITS, ["train.epochs=2", *overrides])


@pytest.fixture(scope="module")
def data(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> PreparedData:
    spec = spec_with()
    return prepare(spec, load_recipe(spec.recipe, spec.params), str(tmp_path_factory.mktemp("data")))


def alone(spec: Spec, data: PreparedData, steps: int) -> checkpoint.TrainState:
    """What one worker has after `steps` steps, without Ray."""
    trainee = Trainee(load_recipe(spec.recipe, spec.params), spec.train, data.load("train"))
    losses = [trainee.step()[0].loss for _ in range(steps)]
    return trainee.state(loss=losses[-1])


def test_a_run_ends_with_a_checkpoint_and_tells_its_progress(data: PreparedData, tmp_path: Path) -> None:
    spec, runs, told = spec_with("train.checkpoint_every_s=0.01"), str(tmp_path / "runs"), []
    result = fit(spec, data, runs, lambda step, done, total, note="": told.append((step, done, total, note)))
    assert (result.step, result.resumed_from) == (46, None)
    assert told[0] == ("train", 0, 46, f"run {result.run_id}, 2 workers on CPU")
    assert told[-1][1:3] == (46, 46)
    assert [done for _, done, _, _ in told] == sorted({done for _, done, _, _ in told}), "each piece of news once"
    assert "samples/s" in told[-1][3]
    assert result.metrics["loss"] < 2.3  # that of a guess among ten
    assert result.metrics["samples_per_s"] > 0
    assert checkpoint.load(result.checkpoint.uri).epoch == 2

    run = tracking.latest_complete(runs, "digits", tracking.run_digest(spec))
    assert run is not None
    assert (run.checkpoint, run.metrics) == (result.checkpoint, result.metrics)
    assert len(list(Path(run.checkpoints).iterdir())) == 2, "the newest and the one before"


def test_an_interrupted_run_is_resumed_at_another_size_and_says_so(
    data: PreparedData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One worker made the first 23 steps; two make the rest, after the newest checkpoint went bad."""
    spec, runs, told = spec_with(), str(tmp_path / "runs"), list[str]()
    run = tracking.begin(runs, spec, data.uri, data.digest)
    for steps in (23, 30):
        saved = checkpoint.save(run.checkpoints, alone(spec, data, steps))
    (Path(saved.uri) / "weights.safetensors").write_bytes(b"bad")

    with caplog.at_level(logging.WARNING):
        result = fit(spec, data, runs, lambda step, done, total, note="": told.append(note))
    assert (result.run_id, result.resumed_from, result.step) == (run.run_id, 23, 46)
    assert told[0] == f"resuming run {run.run_id}, 2 workers on CPU, from step 23 of 46"
    assert told[0] in caplog.text
    assert f"passing over checkpoint {saved.uri}" in caplog.text
    expected = alone(spec, data, 46).weights
    for name, tensor in checkpoint.load(result.checkpoint.uri).weights.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)


def test_a_bug_in_a_recipe_is_shown_with_its_place_and_not_tried_again_and_again(
    data: PreparedData, tmp_path: Path
) -> None:
    spec = spec_with("params.hidden=-1", "train.num_workers=1", "train.max_failures=1000")
    with pytest.raises(TrainingError, match=r"RuntimeError: .*negative dimension.*digits\.py:\d+.*train again"):
        fit(spec, data, str(tmp_path / "runs"))


def test_a_second_driver_of_a_run_is_refused(data: PreparedData, tmp_path: Path) -> None:
    spec = spec_with()
    name = f"train:{spec.name}:{tracking.run_digest(spec)[:16]}"
    with claimed(name), pytest.raises(TrainingError, match="another driver trains this run"):
        fit(spec, data, str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
    with claimed(name):
        pass  # the name is free again


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("train.num_workers=1000", ClusterError, "can't hold 1000 train workers"),
        ("train.accelerator=GPU", ClusterError, "the cluster has no GPU"),
    ],
)
def test_a_size_that_the_cluster_cannot_have_is_refused_at_once(
    data: PreparedData, tmp_path: Path, override: str, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        fit(spec_with(override), data, str(tmp_path / "runs"))


def test_logical_gpus_on_a_machine_without_any_train_on_the_cpu(data: PreparedData, tmp_path: Path) -> None:
    arguments = [str(DIGITS), data.uri, str(tmp_path / "runs")]
    script = subprocess.run([sys.executable, "-c", ON_LOGICAL_GPUS, *arguments], capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    assert "2 workers on GPU -> 23" in script.stdout
