"""The model that every contestant serves: 784 floats, one hidden layer of 128, ten classes. ONNX, random weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tidepool.recipe import Batch, ColumnCheck, MapReduce, Preprocessing, Recipe, Signature, TensorSpec

if TYPE_CHECKING:
    import torch

FEATURES, HIDDEN, CLASSES = 784, 128, 10


def write_onnx(path: Path) -> None:
    """Write the network, the same weights every time."""
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    tensors = {
        "w1": rng.normal(0, 0.05, (FEATURES, HIDDEN)),
        "b1": np.zeros(HIDDEN),
        "w2": rng.normal(0, 0.05, (HIDDEN, CLASSES)),
        "b2": np.zeros(CLASSES),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["image", "w1", "b1"], ["h"]),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", FEATURES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(values.astype(np.float32), name) for name, values in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())


def body() -> bytes:
    """The request that every contestant answers: one row, as JSON."""
    import orjson

    image = np.random.default_rng(1).random((1, FEATURES), np.float32)
    tensor = {"name": "image", "shape": [1, FEATURES], "datatype": "FP32", "data": image.reshape(-1)}
    return orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)


@dataclass(frozen=True)
class Unchanged(Preprocessing):
    """No preprocessing."""

    @classmethod
    def fit(cls, map_reduce: MapReduce) -> Self:
        """Learn nothing."""
        return cls()

    def apply(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """The image as it is."""
        return {"image": batch["image"]}


class Mlp(Recipe):
    """The network as a recipe, for tidepool; it is never trained."""

    signature = Signature(
        inputs=(TensorSpec("image", "FP32", (-1, FEATURES)),),
        outputs=(TensorSpec("digit", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, CLASSES))),
    )
    columns = {"image": ColumnCheck(f"float32[{FEATURES}]"), "label": ColumnCheck("int64")}  # noqa: RUF012
    target = "label"
    preprocessing = Unchanged
    features = (TensorSpec("image", "FP32", (-1, FEATURES)),)
    predictions = (TensorSpec("logits", "FP32", (-1, CLASSES)),)

    def network(self) -> torch.nn.Module:
        """Not trained here."""
        raise NotImplementedError

    loss = optimizer = metrics = network  # type: ignore[assignment]

    def postprocess(self, predictions: Batch) -> dict[str, npt.NDArray[Any]]:
        """Class and softmax."""
        return softmax(predictions["logits"])


def softmax(logits: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """What every contestant answers with."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {"digit": logits.argmax(axis=1), "probabilities": exponentials / exponentials.sum(axis=1, keepdims=True)}
