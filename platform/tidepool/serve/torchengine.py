"""Runs a network with torch, on a GPU.

A small network's time on a GPU is that of starting its kernels one after the other. So the kernels of a batch are
recorded once for each of a ladder of sizes (CUDA graphs: https://docs.nvidia.com/cuda/cuda-programming-guide), and
started together: a batch takes the next larger size, its other rows being left over from the one before. What can't be
recorded, because its shapes are open, it decides by its values or it is large, runs kernel by kernel.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tidepool.errors import ClusterError, RecipeError, StorageError
from tidepool.evaluate.metrics import trained
from tidepool.recipe import Recipe, TensorSpec
from tidepool.serve.engine import Arrays

log = logging.getLogger(__name__)

RECORDED = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Sizes in rows. Of larger batches the kernels take longer than their starting."""
WARM_UP_RUNS = 2
"""Before a recording: libraries that are used for the first time allocate, which can't be recorded."""

Tensors = tuple[torch.Tensor, ...]
Network = Callable[[Sequence[torch.Tensor]], Tensors]


class Device:
    """A processor that starts kernel by kernel."""

    sizes: Sequence[int] = ()
    """Of the batches that it records, ascending, in rows."""

    def __init__(self, name: str = "cpu") -> None:
        self.torch = torch.device(name)

    def record(self, network: Network, inputs: Sequence[torch.Tensor]) -> Callable[[], Tensors]:
        """What runs the network again on what `inputs` hold then; the outputs hold until anything else is run."""
        return lambda: network(inputs)

    def check(self) -> None:
        """Wait until all is done.

        Raises:
            RuntimeError: the device can't be used any more.
        """


class Gpu(Device):
    """One with CUDA, or ROCm under the same name. Its recordings share their memory: one runs at a time."""

    def __init__(self, sizes: Sequence[int] = RECORDED) -> None:
        """`sizes`: of the batches to record, ascending, in rows.

        Raises:
            ClusterError: torch can't use it.
        """
        if not torch.cuda.is_available():
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
            raise ClusterError(
                "torch can't use the GPU that this replica was given",
                seen=f"torch {torch.__version__} finds {torch.cuda.device_count()}; CUDA_VISIBLE_DEVICES: {visible}",
                remedy="install its build for them, give Ray no more than there are, or set serve.accelerator to CPU",
            )
        super().__init__("cuda")
        self.sizes = sizes
        self._memory = torch.cuda.graph_pool_handle()
        # TensorFloat-32 would keep 10 of 23 bits: answers would depend on where they are computed.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def record(self, network: Network, inputs: Sequence[torch.Tensor]) -> Callable[[], Tensors]:
        """As a graph of CUDA's."""
        aside: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP_RUNS):
                network(inputs)
        aside.synchronize()
        graph = torch.cuda.CUDAGraph()
        # Other versions may answer meanwhile, in threads of their own.
        with torch.cuda.graph(graph, pool=self._memory, capture_error_mode="thread_local"):
            outputs = network(inputs)

        def replay() -> Tensors:
            graph.replay()
            return outputs

        return replay

    def check(self) -> None:
        """A kernel that was given an index out of bounds, say, makes it unusable for the whole process."""
        torch.cuda.synchronize()


class TorchEngine:
    """A recipe's network with the weights of a safetensors file, on `device`; in FP32, as it was trained."""

    backend = "tidepool_torch"

    def __init__(self, recipe: Recipe, weights: Path, device: Device) -> None:
        """Load, and record what `device` records.

        Raises:
            StorageError: the weights can't be read.
            RecipeError: the weights don't fit the recipe's network.
        """
        self._features, self._device = recipe.features, device
        self._network = _network(recipe, weights).to(device.torch)
        self._turn = threading.Lock()
        """Recordings work in memory of their own, on one batch at a time."""
        self._recordings = self._recorded()
        self._sizes = sorted(self._recordings)
        self.fault: str | None = None
        """Why it will never answer again."""

    @torch.inference_mode()
    def __call__(self, features: Sequence[npt.NDArray[Any]]) -> Arrays:
        """Run once over all rows.

        Raises:
            RecipeError: they aren't the recipe's features.
        """
        rows = _rows(self._features, features)
        tensors = [torch.from_numpy(np.require(values, requirements=["C", "W"])) for values in features]
        at = bisect_left(self._sizes, rows)
        try:
            if at == len(self._sizes):
                answers = self._run([tensor.to(self._device.torch) for tensor in tensors])
                return [answer.cpu().numpy() for answer in answers]
            with self._turn:
                return self._recordings[self._sizes[at]].run(tensors, rows)
        except Exception:
            self._look()
            raise

    @property
    def is_recorded(self) -> bool:
        """Whether the kernels of small batches are started together."""
        return bool(self._recordings)

    def _run(self, tensors: Sequence[torch.Tensor]) -> Tensors:
        answer = self._network(*tensors)
        return answer if isinstance(answer, tuple) else (answer,)

    @torch.inference_mode()
    def _recorded(self) -> dict[int, _Recording]:
        """Recordings by size in rows; none where the network can't be recorded."""
        if any(-1 in spec.shape[1:] for spec in self._features):
            return {}
        try:
            return {rows: self._record(rows) for rows in self._device.sizes}
        except Exception as error:  # whatever a network raises that looks at its values, which are zeros here
            log.warning("the network can't be recorded, its kernels are started one by one: %s", error)
            return {}

    def _record(self, rows: int) -> _Recording:
        arrays = [np.zeros((rows, *spec.shape[1:]), spec.dtype) for spec in self._features]
        inputs = [torch.from_numpy(array).to(self._device.torch) for array in arrays]
        replay = self._device.record(self._run, inputs)
        if any(len(output) != rows for output in replay()):
            raise RuntimeError("a prediction has other rows than the features")
        return _Recording(inputs, replay)

    def _look(self) -> None:
        try:
            self._device.check()
        except RuntimeError as error:
            self.fault = str(error).splitlines()[0]
            log.error("the device is lost: %s", self.fault)


class _Recording:
    """The kernels of a batch of one size."""

    def __init__(self, inputs: Sequence[torch.Tensor], replay: Callable[[], Tensors]) -> None:
        self._inputs, self._replay = inputs, replay

    def run(self, tensors: Sequence[torch.Tensor], rows: int) -> Arrays:
        """The predictions for `rows` rows, at most as many as were recorded."""
        for held, given in zip(self._inputs, tensors, strict=True):
            held[:rows].copy_(given)
        return [output[:rows].cpu().numpy() for output in self._replay()]


def _rows(specs: Sequence[TensorSpec], features: Sequence[npt.NDArray[Any]]) -> int:
    """How many rows they have: torch would stretch some that don't fit, and convert others."""
    rows = len(features[0])
    for spec, values in zip(specs, features, strict=True):
        shape = (rows, *spec.shape[1:])
        fits = values.ndim == len(shape) and all(a in (-1, b) for a, b in zip(shape, values.shape, strict=True))
        if values.dtype != spec.dtype or not fits:
            raise RecipeError(
                f"preprocessing doesn't give the recipe's feature {spec.name}",
                seen=f"{values.dtype} {list(values.shape)}",
                allowed=f"{spec.dtype} {list(shape)}",
                remedy="mend the recipe's preprocessing",
            )
    return rows


def _network(recipe: Recipe, weights: Path) -> torch.nn.Module:
    try:
        return trained(recipe, load_file(weights))
    except (OSError, SafetensorError) as error:
        remedy = "register the version again"
        raise StorageError("the weights can't be read", seen=f"{weights}: {error}", remedy=remedy) from error
