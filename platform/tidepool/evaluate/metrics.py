"""Metrics of a model on the held-out rows, whatever runs it: torch here, ONNX Runtime in export.

    weights -> network -> predict, batch by batch -> recipe.metrics over all predictions together

All rows are judged together because many metrics (AUC, F1, perplexity) are no mean of their batches' values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from tidepool.errors import DataError, RecipeError, TrainingError
from tidepool.recipe import Batch, Recipe

if TYPE_CHECKING:
    import torch

Arrays = list[npt.NDArray[Any]]

Run = Callable[[Sequence[npt.NDArray[Any]]], Arrays]
"""Features, in the recipe's order, to predictions, in the recipe's order; axis 0 counts the rows."""

ROWS_AT_ONCE = 1024


class HeldOut(Protocol):
    """What evaluation needs of prepared data."""

    def load(self, split: Literal["test"]) -> dict[str, npt.NDArray[Any]]:
        """The network's features and the target, every held-out row."""


def evaluate(recipe: Recipe, weights: Mapping[str, torch.Tensor], data: HeldOut) -> dict[str, float]:
    """The recipe's metrics of a network with these weights.

    Raises:
        RecipeError: the weights don't fit the recipe's network.
        DataError: no row is held out.
        TrainingError: a metric is not a finite number.
    """
    network = trained(recipe, weights)
    metrics = score(recipe, functools.partial(predict, network), data.load("test"))
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"the metric {name} is not a number that can be compared",
                seen=value,
                allowed="a finite number",
                remedy="lower train.learning_rate if training diverged, else correct the recipe's metrics",
            )
    return metrics


def score(recipe: Recipe, run: Run, rows: Batch) -> dict[str, float]:
    """The recipe's metrics of what `run` predicts for `rows`, features and target; not-a-number is passed on.

    Raises:
        DataError: no row is held out.
    """
    target = rows[recipe.target]
    if not len(target):
        raise DataError("no row is held out", seen=0, allowed="at least 1", remedy="raise data.test_fraction")
    features = [rows[spec.name] for spec in recipe.features]
    batches = [
        run([f[start : start + ROWS_AT_ONCE] for f in features]) for start in range(0, len(target), ROWS_AT_ONCE)
    ]
    columns = [np.concatenate(parts) for parts in zip(*batches, strict=True)]
    predictions = {spec.name: column for spec, column in zip(recipe.predictions, columns, strict=True)}
    return {name: float(value) for name, value in recipe.metrics(predictions, target).items()}


def predict(network: torch.nn.Module, features: Sequence[npt.NDArray[Any]]) -> Arrays:
    """Run a torch network on arrays: a `Run` once the network is bound."""
    import torch

    with torch.inference_mode():
        # Copied, because arrays from Arrow or from a file may be read-only, which torch can't express.
        answer = network(*(torch.from_numpy(np.array(values, order="C")) for values in features))
    return [tensor.numpy() for tensor in (answer if isinstance(answer, tuple) else (answer,))]


def trained(recipe: Recipe, weights: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The recipe's network with these weights, in evaluation mode.

    Raises:
        RecipeError: the weights don't fit it.
    """
    network = recipe.network()
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise RecipeError(
            "the weights don't fit the recipe's network",
            seen=" ".join(str(error).split()),
            remedy="use the recipe and the params that the run was trained with, or train again",
        ) from None
    return network.eval()
