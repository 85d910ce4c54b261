"""Metrics are those of all held-out rows together, and always numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from tidepool.errors import DataError, RecipeError, TrainingError
from tidepool.evaluate.metrics import ROWS_AT_ONCE, evaluate, predict, score
from tidepool.recipes.digits import Digits

ROWS = 2 * ROWS_AT_ONCE + 100


class HeldOut:
    """Held-out rows in memory: random pixels, the labels 0 to 9 in turn."""

    def __init__(self, rows: int = ROWS) -> None:
        self._pixels = np.random.default_rng(0).random((rows, 64), np.float32)
        self._labels = np.arange(rows) % 10

    def load(self, split: str) -> dict[str, np.ndarray]:
        assert split == "test"
        return {"pixels": self._pixels, "label": self._labels}


class Counting(Digits):
    """Digits whose only metric is how many rows it was shown at once."""

    def metrics(self, predictions: Mapping[str, Any], target: np.ndarray) -> dict[str, float]:
        assert len(predictions["logits"]) == len(target)
        return {"rows": len(target)}


class Diverged(Digits):
    """Digits whose loss ran away."""

    def metrics(self, predictions: Mapping[str, Any], target: np.ndarray) -> dict[str, float]:
        return {**super().metrics(predictions, target), "loss": float("nan")}


def always(digit: int, recipe: Digits) -> dict[str, torch.Tensor]:
    """Weights of a network that answers `digit` to everything."""
    weights = {name: torch.zeros_like(value) for name, value in recipe.network().state_dict().items()}
    weights["2.bias"][digit] = 1
    return weights


def test_accuracy_is_the_share_of_rows_that_are_right() -> None:
    recipe = Digits(hidden=4)
    metrics = evaluate(recipe, always(3, recipe), HeldOut())
    assert metrics == {"accuracy": pytest.approx(np.mean(np.arange(ROWS) % 10 == 3))}
    assert type(metrics["accuracy"]) is float


def test_metrics_see_all_rows_at_once_though_the_network_sees_batches() -> None:
    seen = []

    def run(features: Any) -> list[np.ndarray]:
        seen.append(len(features[0]))
        return [np.zeros((len(features[0]), 10), np.float32)]

    assert score(Counting(), run, HeldOut().load("test")) == {"rows": float(ROWS)}
    assert seen == [ROWS_AT_ONCE, ROWS_AT_ONCE, 100]


def test_batches_are_put_together_in_the_order_of_the_rows() -> None:
    rows, order = HeldOut().load("test"), []

    def run(features: Any) -> list[np.ndarray]:
        order.append(features[0])
        return [np.zeros((len(features[0]), 10), np.float32)]

    score(Counting(), run, rows)
    np.testing.assert_array_equal(np.concatenate(order), rows["pixels"])


def test_dropout_and_batch_norm_are_in_evaluation_mode() -> None:
    class Dropping(Digits):
        def network(self) -> torch.nn.Module:
            return torch.nn.Sequential(torch.nn.Dropout(0.9), torch.nn.BatchNorm1d(64), torch.nn.Linear(64, 10))

    recipe = Dropping()
    weights = recipe.network().state_dict()
    assert evaluate(recipe, weights, HeldOut()) == evaluate(recipe, weights, HeldOut())


def test_a_metric_that_is_not_a_number_is_refused_with_a_remedy() -> None:
    recipe = Diverged(hidden=4)
    with pytest.raises(TrainingError, match=r"metric loss .*Seen: nan.*learning_rate"):
        evaluate(recipe, always(0, recipe), HeldOut())


def test_weights_of_another_network_are_refused_with_the_layer_that_differs() -> None:
    with pytest.raises(RecipeError, match=r"0\.weight.*params"):
        evaluate(Digits(hidden=8), Digits(hidden=4).network().state_dict(), HeldOut())


def test_without_a_held_out_row_there_is_no_metric() -> None:
    recipe = Digits(hidden=4)
    with pytest.raises(DataError, match="test_fraction"):
        evaluate(recipe, always(0, recipe), HeldOut(0))


def test_a_network_may_give_one_tensor_or_several() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x + y, x - y

    added, subtracted = predict(Two(), [np.ones((2, 3), np.float32)[:, ::-1], np.ones((2, 3), np.float32)])
    assert added.tolist() == [[2, 2, 2]] * 2
    assert subtracted.tolist() == [[0, 0, 0]] * 2
