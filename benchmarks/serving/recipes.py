"""The networks as recipes, for tidepool; none is ever trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import networks
import numpy.typing as npt

from tidepool.recipe import Batch, ColumnCheck, MapReduce, Preprocessing, Recipe, Signature, TensorSpec

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Unchanged(Preprocessing):
    """No preprocessing."""

    @classmethod
    def fit(cls, map_reduce: MapReduce) -> Self:
        """Learn nothing."""
        return cls()

    def apply(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """The columns as they are."""
        return dict(batch)


class Served(Recipe):
    """A network that is only served."""

    columns: ClassVar[Mapping[str, ColumnCheck]] = {}
    target = "none"
    preprocessing = Unchanged

    def network(self) -> torch.nn.Module:
        """Not trained here."""
        raise NotImplementedError

    loss = optimizer = metrics = network  # type: ignore[assignment]

    def postprocess(self, predictions: Batch) -> dict[str, npt.NDArray[Any]]:
        """The network's outputs as they are."""
        return dict(predictions)


class Mlp(Served):
    """Class and probabilities of 784 floats."""

    features = (TensorSpec("image", "FP32", (-1, networks.FEATURES)),)
    predictions = (TensorSpec("logits", "FP32", (-1, networks.CLASSES)),)
    signature = Signature(
        inputs=features,
        outputs=(TensorSpec("digit", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, networks.CLASSES))),
    )

    def postprocess(self, predictions: Batch) -> dict[str, npt.NDArray[Any]]:
        """Class and softmax."""
        return networks.softmax(predictions["logits"])


class Encoder(Served):
    """The embedding of 128 tokens."""

    features = (TensorSpec("tokens", "INT64", (-1, networks.TOKENS)),)
    predictions = (TensorSpec("embedding", "FP32", (-1, networks.WIDTH)),)
    signature = Signature(inputs=features, outputs=predictions)

    def network(self) -> torch.nn.Module:
        """For a GPU."""
        made: torch.nn.Module = networks.torch_encoder()
        return made


class Pool(Served):
    """Scores of a picture."""

    features = (TensorSpec("image", "FP32", (-1, networks.CHANNELS, networks.SIDE, networks.SIDE)),)
    predictions = (TensorSpec("scores", "FP32", (-1, networks.CLASSES)),)
    signature = Signature(inputs=features, outputs=predictions)
