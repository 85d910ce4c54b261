"""Handwritten digits (vision): 8x8 grey images in, a digit and its probabilities out.

The data are the 1,797 real scans that scikit-learn ships (UCI Optical Recognition of Handwritten Digits), so
nothing is downloaded. Copy this file to begin a recipe of your own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tidepool.recipe import Batch, ColumnCheck, MapReduce, Preprocessing, Recipe, Signature, TensorSpec

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

PIXELS = 64
CLASSES = 10


@dataclass(frozen=True)
class Scaling(Preprocessing):
    """Pixels to [0, 1]: divides by the largest value in the training rows."""

    largest: float

    @classmethod
    def fit(cls, map_reduce: MapReduce) -> Self:
        """Find the largest pixel: each block's own in the map, the largest of those in the reduce."""
        largest = map_reduce(map=_largest_pixel, combine=_largest_row, reduce=_largest_row)
        return cls(largest=float(largest["pixel"][0].as_py()))

    def apply(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """`image` [n, 64] to `pixels` [n, 64], both float32."""
        return {"pixels": (batch["image"] / np.float32(self.largest)).astype(np.float32, copy=False)}


def _largest_pixel(rows: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pa.table({"key": ["image"], "pixel": [pc.max(pc.list_flatten(rows["image"])).as_py()]})


def _largest_row(rows: pa.Table) -> pa.Table:
    return rows.group_by("key").aggregate([("pixel", "max")]).rename_columns({"pixel_max": "pixel"})


class Digits(Recipe):
    """A perceptron with one hidden layer."""

    signature = Signature(
        inputs=(TensorSpec("image", "FP32", (-1, PIXELS), picture=(8, 8)),),
        outputs=(TensorSpec("digit", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, CLASSES))),
    )
    columns = {  # noqa: RUF012
        "image": ColumnCheck(f"float32[{PIXELS}]", minimum=0, maximum=16),
        "label": ColumnCheck("int64", minimum=0, maximum=CLASSES - 1),
    }
    target = "label"
    preprocessing = Scaling
    features = (TensorSpec("pixels", "FP32", (-1, PIXELS), picture=(8, 8)),)
    predictions = (TensorSpec("logits", "FP32", (-1, CLASSES)),)

    def __init__(self, hidden: int = 128) -> None:
        self.hidden = hidden

    def builtin(self, name: str) -> pa.Table:
        """`digits`: the scans of scikit-learn."""
        import pyarrow as pa
        from sklearn.datasets import load_digits

        if name != "digits":
            return super().builtin(name)
        scans = load_digits()
        pixels = pa.array(scans.data.astype(np.float32).reshape(-1))
        return pa.table(
            {
                "image": pa.FixedSizeListArray.from_arrays(pixels, PIXELS),
                "label": scans.target.astype(np.int64),
            }
        )

    def network(self) -> torch.nn.Module:
        """64 -> hidden -> 10."""
        from torch import nn

        return nn.Sequential(nn.Linear(PIXELS, self.hidden), nn.ReLU(), nn.Linear(self.hidden, CLASSES))

    def loss(self, predictions: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        """Cross entropy."""
        from torch.nn import functional

        return functional.cross_entropy(predictions[0], target)

    def optimizer(self, network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """SGD with momentum."""
        from torch.optim import SGD

        return SGD(network.parameters(), lr=learning_rate, momentum=0.9, weight_decay=1e-4)

    def metrics(self, predictions: Batch, target: npt.NDArray[Any]) -> dict[str, float]:
        """Share of rows whose most probable digit is the right one."""
        return {"accuracy": float(np.mean(predictions["logits"].argmax(axis=1) == target))}

    def postprocess(self, predictions: Batch) -> dict[str, npt.NDArray[Any]]:
        """Logits to the most probable digit and the softmax."""
        logits = predictions["logits"]
        exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
        return {
            "digit": logits.argmax(axis=1),
            "probabilities": exponentials / exponentials.sum(axis=1, keepdims=True),
        }
