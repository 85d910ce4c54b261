"""Training runs on a real Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidepool import checkpoint
from tidepool.data.preprocess import PreparedData, prepare
from tidepool.errors import TrainingError
from tidepool.recipe import load_recipe
from tidepool.spec import Spec, load_spec
from tidepool.train import tracking, trainer

DIGITS = Path(__file__).parents[2] / "deployments/digits/spec.yaml"


@pytest.fixture
def spec() -> Spec:
    return load_spec(DIGITS, ["train.epochs=2"])


@pytest.fixture
def data(ray_cluster: None, spec: Spec, tmp_path: Path) -> PreparedData:
    return prepare(spec, load_recipe(spec.recipe, spec.params), str(tmp_path / "data"))


def test_a_run_ends_with_a_checkpoint_and_tells_its_progress(spec: Spec, data: PreparedData, tmp_path: Path) -> None:
    told: list[tuple[float, float]] = []
    result = trainer.fit(
        spec, data, str(tmp_path / "runs"), lambda step, done, total, note="": told.append((done, total))
    )
    assert (result.step, result.resumed_from) == (46, None)
    assert told[-1] == (46, 46)
    assert result.metrics["loss"] < 2.3  # that of a guess among ten
    assert checkpoint.load(result.checkpoint.uri).epoch == 2
    found = tracking.latest_complete(str(tmp_path / "runs"), "digits", tracking.run_digest(spec))
    assert found is not None
    assert found.checkpoint == result.checkpoint


def test_an_interrupted_run_is_resumed_and_says_so(
    spec: Spec, data: PreparedData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = str(tmp_path / "runs")
    whole = trainer.fit(spec, data, runs)
    # The same run again, as if its driver had died after the first checkpoint: half of its steps, not complete.
    run, _ = tracking.begin(runs, spec, data.uri, data.digest)
    half = _state_at(23, spec, data)
    checkpoint.save(run.checkpoints, half)
    resumed = trainer.fit(spec, data, runs)
    assert resumed.resumed_from == 23
    assert f"resuming run {run.run_id} from step 23" in capsys.readouterr().out
    first, second = (checkpoint.load(result.checkpoint.uri).weights for result in (whole, resumed))
    for name, tensor in first.items():
        assert tensor.allclose(second[name], rtol=1e-4, atol=1e-6)


def test_a_failing_recipe_is_reported_with_its_own_words(spec: Spec, data: PreparedData, tmp_path: Path) -> None:
    train = spec.train.model_copy(update={"learning_rate": 1e30, "max_failures": 0})
    with pytest.raises(TrainingError, match="not finite"):
        trainer.fit(spec.model_copy(update={"train": train}), data, str(tmp_path / "runs"))


def _state_at(steps: int, spec: Spec, data: PreparedData) -> checkpoint.TrainState:
    from tidepool.train.loop import Trainee

    trainee = Trainee(load_recipe(spec.recipe, spec.params), spec.train, data.load("train"))
    for _ in range(steps):
        trainee.step()
    return trainee.state()
