"""The network as every peer runs it: ONNX Runtime, one thread inside an operator, and what follows it.

Only the peers' servers import this, in environments without tidepool. MODEL is the network's file, BATCH the largest
batch that the peer is to make (1: none).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from networks import session, softmax

BATCH = int(os.environ["BATCH"])
DTYPES: dict[str, np.dtype[Any]] = {"tensor(float)": np.dtype(np.float32), "tensor(int64)": np.dtype(np.int64)}
DATATYPES: dict[np.dtype[Any], str] = {np.dtype(np.float32): "FP32", np.dtype(np.int64): "INT64"}

Rows = npt.NDArray[Any]


class Network:
    """Rows to answers."""

    def __init__(self) -> None:
        self._session = session(os.environ["MODEL"])
        (entry,), (leave,) = self._session.get_inputs(), self._session.get_outputs()
        self.dtype, self.shape = DTYPES[entry.type], tuple(entry.shape[1:])
        """Of one row."""
        self._entry, self._leave = entry.name, leave.name

    def __call__(self, rows: Rows) -> dict[str, Rows]:
        """The named outputs for `rows`; axis 0 counts them."""
        (answer,) = self._session.run(None, {self._entry: rows})
        return softmax(answer) if self._leave == "logits" else {self._leave: answer}

    def tensors(self, rows: Rows) -> list[dict[str, Any]]:
        """The same, ready for JSON, in the form of the Open Inference Protocol."""
        return [
            {"name": name, "datatype": DATATYPES[values.dtype], "shape": list(values.shape), "data": values.tolist()}
            for name, values in self(rows).items()
        ]

    def from_numbers(self, data: list[Any]) -> Rows:
        """The rows of a flat list."""
        return np.array(data, self.dtype).reshape(-1, *self.shape)

    def from_bytes(self, data: bytes) -> Rows:
        """The rows of a raw, little-endian and row-major tensor."""
        return np.frombuffer(data, self.dtype).reshape(-1, *self.shape)
