"""Runs a network with torch, on a GPU.

A small network's time on a GPU is that of starting its kernels one after the other. So the kernels of a batch are
recorded once for each of a ladder of sizes (CUDA graphs: https://docs.nvidia.com/cuda/cuda-programming-guide), and
started together: a batch takes the next larger size, its other rows being left over from the one before. What can't be
recorded, because its shapes are open, it decides by its values or it is large, runs kernel by kernel.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tidepool.errors import ClusterError, StorageError
from tidepool.evaluate.metrics import trained
from tidepool.recipe import Recipe, TensorSpec
from tidepool.serve.engine import Arrays

log = logging.getLogger(__name__)

RECORDED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Sizes in rows. Of larger batches the kernels take longer than their starting."""
WARM_UP_RUNS = 2
"""Before a recording: libraries that are used for the first time allocate, which can't be recorded."""


class TorchEngine:
    """A recipe's network with the weights of a safetensors file, on `device`; in FP32, as it was trained."""

    backend = "tidepool_torch"

    def __init__(self, recipe: Recipe, weights: Path, device: str, recorded: Sequence[int] = RECORDED) -> None:
        """`recorded`: the sizes to record, ascending, where `device` is a GPU.

        Raises:
            ClusterError: torch can't use the device.
            StorageError: the weights can't be read.
            RecipeError: the weights don't fit the recipe's network.
        """
        self._device = torch.device(device)
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise ClusterError(
                "torch can't use this machine's GPU",
                seen=f"torch {torch.__version__}",
                remedy="install the build of torch for it, or set serve.accelerator to CPU",
            )
        # TensorFloat-32 would keep 10 of 23 bits: answers would depend on where they are computed.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self._network = _network(recipe, weights).to(self._device)
        self._turn = threading.Lock()
        """Recordings work in memory of their own, on one batch at a time."""
        self._recordings: Mapping[int, _Recording] = {}
        if self._device.type == "cuda":
            self._recordings = _record(self._run, recipe.features, self._device, recorded)
        self._sizes = sorted(self._recordings)

    @torch.inference_mode()
    def __call__(self, features: Sequence[npt.NDArray[Any]]) -> Arrays:
        """Run once over all rows."""
        tensors = [torch.from_numpy(np.require(values, requirements=["C", "W"])) for values in features]
        rows = len(tensors[0])
        at = bisect_left(self._sizes, rows)
        if at == len(self._sizes):
            return [tensor.cpu().numpy() for tensor in self._run([tensor.to(self._device) for tensor in tensors])]
        with self._turn:
            return self._recordings[self._sizes[at]].run(tensors, rows)

    @property
    def is_recorded(self) -> bool:
        """Whether the kernels of small batches are started together."""
        return bool(self._recordings)

    def _run(self, tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        answer = self._network(*tensors)
        return answer if isinstance(answer, tuple) else (answer,)


class _Recording:
    """The kernels of a batch of one size."""

    def __init__(self, run: Callable[..., tuple[torch.Tensor, ...]], inputs: list[torch.Tensor], memory: Any) -> None:
        """`memory`: shared by recordings of which one runs at a time, its outputs being read before the next."""
        self._inputs, self._graph = inputs, torch.cuda.CUDAGraph()
        # Other versions may answer meanwhile, in threads of their own.
        with torch.cuda.graph(self._graph, pool=memory, capture_error_mode="thread_local"):
            self._outputs = run(inputs)
        if any(len(output) != len(inputs[0]) for output in self._outputs):
            raise RuntimeError("a prediction has other rows than the features")

    def run(self, tensors: Sequence[torch.Tensor], rows: int) -> Arrays:
        """The predictions for `rows` rows, at most as many as were recorded."""
        for held, given in zip(self._inputs, tensors, strict=True):
            held[:rows].copy_(given)
        self._graph.replay()
        return [output[:rows].cpu().numpy() for output in self._outputs]


def _network(recipe: Recipe, weights: Path) -> torch.nn.Module:
    try:
        return trained(recipe, load_file(weights))
    except SafetensorError as error:
        raise StorageError("the weights can't be read", seen=f"{weights}: {error}") from error


@torch.inference_mode()
def _record(
    run: Callable[..., tuple[torch.Tensor, ...]],
    features: Sequence[TensorSpec],
    device: torch.device,
    sizes: Sequence[int],
) -> dict[int, _Recording]:
    """Recordings by size in rows; none where the network can't be recorded."""
    if any(-1 in feature.shape[1:] for feature in features):
        return {}
    memory, recordings = torch.cuda.graph_pool_handle(), {}
    try:
        for rows in sizes:
            shapes = [(rows, *feature.shape[1:]) for feature in features]
            inputs = [
                torch.from_numpy(np.zeros(shape, feature.dtype)).to(device)
                for shape, feature in zip(shapes, features, strict=True)
            ]
            aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UP_RUNS):
                    run(inputs)
            aside.synchronize()
            recordings[rows] = _Recording(run, inputs, memory)
    except RuntimeError as error:
        log.info("the network can't be recorded, its kernels are started one by one: %s", error)
        return {}
    return recordings
