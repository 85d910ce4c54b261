"""Integrated gradients of a small trained network, beside occlusion of the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from tidepool.artifact import Artifact, open_artifact
from tidepool.cli.main import app
from tidepool.errors import InvalidRequest, ModelNotFound, SpecError
from tidepool.evaluate.attributions import integrated_gradients
from tidepool.evaluate.metrics import predict, trained
from tidepool.recipes.digits import Digits, Scaling


@dataclass
class Untrained:
    """What `integrated_gradients` reads of an artifact, with a network as it came into the world."""

    weights: Path
    made: Digits = field(default_factory=Digits)

    def recipe(self) -> Digits:
        return self.made

    def preprocessing(self) -> Scaling:
        return Scaling(16.0)


@pytest.fixture
def artifact(tmp_path: Path) -> Any:
    torch.manual_seed(0)
    save_file(Digits().network().state_dict(), tmp_path / "weights.safetensors")
    return Untrained(tmp_path / "weights.safetensors")


IMAGES = {"image": np.random.default_rng(0).uniform(0, 16, (3, 64)).astype(np.float32)}


def test_the_attributions_of_a_row_sum_to_what_the_features_change(artifact: Any) -> None:
    from safetensors.torch import load_file

    found = integrated_gradients(artifact, IMAGES)
    network = trained(Digits(), load_file(artifact.weights))
    pixels = artifact.preprocessing().apply(IMAGES)["pixels"]
    (logits,), (blank,) = predict(network, [pixels]), predict(network, [np.zeros_like(pixels)])
    assert found.targets.tolist() == logits.argmax(axis=1).tolist()
    assert found.attributions["pixels"].shape == (3, 64)
    change = np.take_along_axis(logits - blank, found.targets[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(found.attributions["pixels"].sum(axis=1), change, atol=0.02)


def test_a_prediction_or_target_that_there_is_not_is_refused(artifact: Any) -> None:
    assert integrated_gradients(artifact, IMAGES, "logits", 3).targets.tolist() == [3, 3, 3]
    with pytest.raises(InvalidRequest, match="0 to 9"):
        integrated_gradients(artifact, IMAGES, target=10)
    with pytest.raises(InvalidRequest, match="Allowed: logits"):
        integrated_gradients(artifact, IMAGES, "probabilities")


@pytest.fixture
def registered(home: Path, make_artifact: Callable[..., Path]) -> Artifact:
    from tidepool.registry.client import Registry
    from tidepool.settings import Settings

    settings, artifact = Settings(), open_artifact(str(make_artifact(1)))
    registry = Registry(settings.registry, settings.storage("artifacts"))
    registry.promote("digits", registry.register(artifact).version)
    return artifact


def types(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def test_the_command_explains_a_registered_model_and_draws_it(registered: Artifact, tmp_path: Path) -> None:
    told = types("explain", "digits", "--picture", str(tmp_path / "why.png")).stdout.splitlines()
    assert told[0] == "row 0: probabilities[1]"
    assert len(told) == 6
    assert Image.open(tmp_path / "why.png").size == (256, 256)


def test_the_command_refuses_what_there_is_not(registered: Artifact, tmp_path: Path) -> None:
    assert isinstance(types("explain", "iris").exception, ModelNotFound)
    assert isinstance(types("explain", "digits", "--method", "guess").exception, SpecError)
    assert isinstance(types("explain", "digits", str(tmp_path / "none.json")).exception, SpecError)
