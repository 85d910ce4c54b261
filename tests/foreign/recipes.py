"""A model whose tensors are those that digits hasn't: BYTES and FP16, in and out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from tidepool.recipe import Batch, ColumnCheck, MapReduce, Preprocessing, Recipe, Signature, TensorSpec

WIDTH = 4


@dataclass(frozen=True)
class Lengths(Preprocessing):
    """Adds the length of a text to every half."""

    @classmethod
    def fit(cls, map_reduce: MapReduce) -> Self:
        """Learn nothing."""
        return cls()

    def apply(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """One row for each text."""
        lengths = np.array([[len(text)] for text in batch["text"].reshape(-1)], np.float16)
        return {"sums": batch["halves"] + lengths}


class Halves(Recipe):
    """Sums, and the first of them as a text."""

    columns: ClassVar[Mapping[str, ColumnCheck]] = {}
    target = "none"
    preprocessing = Lengths
    features = (TensorSpec("sums", "FP16", (-1, WIDTH)),)
    predictions = (TensorSpec("same", "FP16", (-1, WIDTH)),)
    signature = Signature(
        inputs=(TensorSpec("text", "BYTES", (-1, 1)), TensorSpec("halves", "FP16", (-1, WIDTH))),
        outputs=(TensorSpec("said", "BYTES", (-1,)), TensorSpec("sums", "FP16", (-1, WIDTH))),
    )

    def network(self) -> Any:
        """It is only served."""
        raise NotImplementedError

    loss = optimizer = metrics = network

    def postprocess(self, predictions: Batch) -> dict[str, npt.NDArray[Any]]:
        """The sums, and a text that is no UTF-8."""
        said = np.array([b"%d\xff" % first for first in predictions["same"][:, 0]], np.object_)
        return {"said": said, "sums": predictions["same"]}


def write_halves(path: Path) -> None:
    """The network of `Halves` as ONNX: what comes goes."""
    from onnx import TensorProto, helper

    kinds = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", WIDTH]) for name in ("sums", "same")]
    _write(path, helper.make_graph([helper.make_node("Identity", ["sums"], ["same"])], "halves", kinds[:1], kinds[1:]))


def write_digits(path: Path) -> None:
    """A network for `tidepool.recipes.digits` as ONNX, with weights that nobody trained."""
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(1).normal(0, 0.1, (64, 10)).astype(np.float32)
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 64])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])
    product = helper.make_node("MatMul", ["pixels", "weights"], ["logits"])
    kept = [numpy_helper.from_array(weights, "weights")]
    _write(path, helper.make_graph([product], "digits", [pixels], [logits], kept))


def _write(path: Path, graph: Any) -> None:
    from onnx import helper

    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
