"""Runs a network: ONNX Runtime on CPU, torch on a GPU; one engine a version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from tidepool.artifact import Artifact
from tidepool.errors import StorageError

Arrays = list[npt.NDArray[Any]]

GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")
"""One of them is where a GPU can be used: NVIDIA's, AMD's, or either's under Windows."""


class Engine(Protocol):
    """Features in the recipe's order to predictions in the recipe's order; axis 0 counts the rows.

    Calls may come from several threads.
    """

    backend: str
    """What it is in a model's metadata."""
    fault: str | None
    """Why it will never answer again, if so: the replica is replaced then."""

    def __call__(self, features: Sequence[npt.NDArray[Any]]) -> Arrays: ...


def open_engine(artifact: Artifact, accelerator: str = "CPU", gpu_files: Sequence[str] = GPU_FILES) -> Engine:
    """The engine for a replica that holds `accelerator`, a name as in `serve.accelerator`.

    A real GPU runs the network as it was trained and pruned; everything else, logical GPUs of a machine that has no
    real one among it, runs the ONNX model on CPU.

    Raises:
        ClusterError: torch can't use the GPU.
        StorageError: the model can't be loaded.
    """
    if accelerator == "GPU" and has_gpu(gpu_files):
        from tidepool.serve.torchengine import Gpu, TorchEngine

        return TorchEngine(artifact.recipe(), artifact.weights, Gpu())
    return OnnxEngine(artifact.onnx)


def has_gpu(files: Sequence[str] = GPU_FILES) -> bool:
    """Whether this machine has a real one. Neither torch nor Ray is asked: that would take as long as a start."""
    return any(Path(file).exists() for file in files)


class OnnxEngine:
    """ONNX Runtime on CPU. `threads` threads work on one call."""

    backend = "tidepool_onnx"
    fault: str | None = None

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
