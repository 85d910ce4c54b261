"""A small model that generates: which letter comes after which in a text."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from tidepool.errors import InvalidRequest
from tidepool.recipe import Batch, ColumnCheck, MapReduce, Preprocessing, Recipe, Run, Signature, TensorSpec

CODES = 128
TEXT = "the tide comes in and the tide goes out and what the sea takes the sea brings back. "


@dataclass(frozen=True)
class Codes(Preprocessing):
    """Letters as they are."""

    @classmethod
    def fit(cls, map_reduce: MapReduce) -> Self:
        """Learn nothing."""
        return cls()

    def apply(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """The codes."""
        return dict(batch)


class Letters(Recipe):
    """The next letter's logits by the last letter; a letter is its code in ASCII."""

    columns: ClassVar[Mapping[str, ColumnCheck]] = {}
    target = "none"
    preprocessing = Codes
    features = (TensorSpec("letter", "INT64", (-1,)),)
    predictions = (TensorSpec("logits", "FP32", (-1, CODES)),)
    signature = Signature(features, predictions)

    def network(self) -> Any:
        """It is only served."""
        raise NotImplementedError

    loss = optimizer = metrics = network

    def postprocess(self, predictions: Batch) -> dict[str, npt.NDArray[Any]]:
        """The logits."""
        return dict(predictions)

    def generate(
        self, preprocessing: Preprocessing, run: Run, text: str, parameters: Mapping[str, Any]
    ) -> Generator[str, None, None]:
        """`max_tokens` letters, drawn with `seed`."""
        limit, draw = parameters.get("max_tokens", 16), np.random.default_rng(parameters.get("seed", 0))
        if not text.isascii() or not text:
            raise InvalidRequest("text_input is not ASCII", seen=text)
        if type(limit) is not int or limit < 0:
            raise InvalidRequest("max_tokens is not a number of letters", seen=limit)
        code = ord(text[-1])
        for _ in range(limit):
            (logits,) = run([preprocessing.apply({"letter": np.array([code])})["letter"]])
            odds = np.exp(logits[0].astype(np.float64))
            code = int(draw.choice(CODES, p=odds / odds.sum()))
            yield chr(code)


def write_letters(path: Path) -> None:
    """The network as ONNX: a row of a table for each letter, learned from `TEXT`."""
    from onnx import TensorProto, helper, numpy_helper

    seen = np.full((CODES, CODES), 1e-9, np.float32)
    for one, other in zip(TEXT, TEXT[1:] + TEXT[0], strict=True):
        seen[ord(one), ord(other)] += 1
    letter = helper.make_tensor_value_info("letter", TensorProto.INT64, ["n"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CODES])
    lookup = helper.make_node("Gather", ["table", "letter"], ["logits"])
    graph = helper.make_graph([lookup], "letters", [letter], [logits], [numpy_helper.from_array(np.log(seen), "table")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
