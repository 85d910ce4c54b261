"""Which features a trained network's prediction rests on: integrated gradients, through captum.

Sundararajan, Taly and Yan, "Axiomatic Attribution for Deep Networks" (2017): the gradients of the target's score, added
up along the way from a baseline to the features. The attributions of a row sum to the difference of both scores. The
gradients are those of the trained network, before its weights were quantised for serving.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tidepool.artifact import Artifact
from tidepool.errors import InvalidRequest
from tidepool.evaluate.metrics import trained
from tidepool.recipe import Batch, TensorSpec

if TYPE_CHECKING:
    import torch

METHOD = "integrated_gradients"
STEPS = 64
"""Points at which gradients are taken on the way."""
ROWS_AT_ONCE = 1024
MOST_ROWS = 128
"""Of raw inputs, at most: 8,192 go through the network."""


@dataclass(frozen=True)
class Attributions:
    """What the predictions for some rows rest on."""

    specs: tuple[TensorSpec, ...]
    """The features: what preprocessing makes of the inputs."""
    values: dict[str, npt.NDArray[Any]]
    """Of each feature."""
    attributions: dict[str, npt.NDArray[np.float32]]
    """Of each feature, in its shape."""
    prediction: str
    """Whose value was explained."""
    targets: npt.NDArray[np.int64]
    """Index of that value in each row's prediction, flattened."""


def integrated_gradients(
    artifact: Artifact, inputs: Batch, prediction: str | None = None, target: int | None = None
) -> Attributions:
    """Explain the predictions for raw `inputs`, the baseline being features of zero.

    `prediction`: the recipe's first unless named; `target`: of its values, each row's largest unless given.

    Raises:
        InvalidRequest: no such prediction or target, too many rows, captum is missing, or a feature has no gradients,
            being of whole numbers.
    """
    import torch
    from safetensors.torch import load_file

    recipe = artifact.recipe()
    if (rows := len(next(iter(inputs.values())))) > MOST_ROWS:
        raise InvalidRequest("too many rows to explain at once", seen=rows, allowed=MOST_ROWS)
    if discrete := [spec.name for spec in recipe.features if not spec.datatype.startswith("FP")]:
        remedy = "use occlusion"
        raise InvalidRequest("only features with a fraction have gradients", seen=", ".join(discrete), remedy=remedy)
    names = [spec.name for spec in recipe.predictions]
    if prediction is not None and prediction not in names:
        raise InvalidRequest("no such prediction to explain", seen=prediction, allowed=", ".join(names))
    chosen = prediction or names[0]
    network = trained(recipe, load_file(artifact.weights))
    prepared = artifact.preprocessing().apply(inputs)
    features = tuple(torch.from_numpy(np.array(prepared[spec.name], order="C")) for spec in recipe.features)

    def scores(*features: torch.Tensor) -> torch.Tensor:
        answer = network(*features)
        values: torch.Tensor = answer[names.index(chosen)] if isinstance(answer, tuple) else answer
        return values.flatten(start_dim=1)

    with torch.inference_mode():
        predicted = scores(*features)
    if target is not None and not 0 <= target < predicted.shape[1]:
        allowed = f"0 to {predicted.shape[1] - 1}"
        raise InvalidRequest(f"prediction {chosen} has no such target", seen=target, allowed=allowed)
    targets = predicted.argmax(dim=1) if target is None else torch.full((len(predicted),), target)
    gradients = _gradients(scores, features, targets)
    found = {spec.name: each for spec, each in zip(recipe.features, gradients, strict=True)}
    return Attributions(recipe.features, prepared, found, chosen, targets.numpy())


def _gradients(
    scores: Callable[..., torch.Tensor], features: tuple[torch.Tensor, ...], targets: torch.Tensor
) -> list[npt.NDArray[np.float32]]:
    try:
        from captum.attr import IntegratedGradients
    except ModuleNotFoundError:
        remedy = "pip install 'tidepool[explain]' where it is explained, or use occlusion"
        missing = "integrated gradients need a package that is missing"
        raise InvalidRequest(missing, seen="captum", remedy=remedy) from None
    found: Any = IntegratedGradients(scores).attribute(
        features, target=targets, n_steps=STEPS, internal_batch_size=max(ROWS_AT_ONCE, len(targets))
    )
    return [each.detach().numpy().astype(np.float32) for each in found]
