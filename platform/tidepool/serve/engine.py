"""Runs a network: ONNX Runtime, one session a version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from tidepool.errors import StorageError

Arrays = list[npt.NDArray[Any]]


class Engine(Protocol):
    """Features in the recipe's order to predictions in the recipe's order; axis 0 counts the rows."""

    def __call__(self, features: Sequence[npt.NDArray[Any]]) -> Arrays: ...


class OnnxEngine:
    """ONNX Runtime on CPU. `threads` threads work on one call; calls may come from several threads."""

    def __init__(self, model: Path, threads: int = 1) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads that spin would take the core from the replica's event loop.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises a type of its own for each cause
            raise StorageError("ONNX Runtime can't load the model", seen=f"{model}: {error}") from error
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        self._outputs = [tensor.name for tensor in self._session.get_outputs()]

    def __call__(self, features: Sequence[npt.NDArray[Any]]) -> Arrays:
        """Run once over all rows."""
        answer: Arrays = self._session.run(self._outputs, dict(zip(self._inputs, features, strict=True)))
        return answer
