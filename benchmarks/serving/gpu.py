"""The encoder on a GPU and on one core: `python benchmarks/serving/gpu.py`, on a machine with a GPU.

First the engines alone: milliseconds for a batch in ONNX Runtime, in torch on the GPU with its kernels started one by
one, and with them recorded. Then as a service, with one replica on each, and the same clients.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import load
import networks
import numpy as np
import numpy.typing as npt
import recipes
import tidepool_server
import torch
from safetensors.torch import save
from workloads import WORKLOADS

from tidepool.export.onnx import write_onnx
from tidepool.serve.engine import OnnxEngine
from tidepool.serve.torchengine import Gpu, TorchEngine

WORKLOAD = WORKLOADS["b"]
ROWS = (1, 4, 16, 48, 64, 256)
CONNECTIONS = (1, 16, 64, 128)
RUNS, SECONDS = 30, 5.0


def main() -> None:
    """Print both tables."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        engines(Path(folder))
    service()


def write(path: Path) -> None:
    """The encoder as ONNX."""
    write_onnx(networks.torch_encoder(), recipes.Encoder(), [tokens(4)], path)


def weights() -> bytes:
    """The encoder as safetensors."""
    return save(networks.torch_encoder().state_dict())


def tokens(rows: int) -> npt.NDArray[np.int64]:
    """A batch."""
    return np.random.default_rng(0).integers(0, networks.VOCABULARY, (rows, networks.TOKENS), np.int64)


def engines(folder: Path) -> None:
    """Milliseconds for a batch, and how far the answers are apart."""
    write(folder / "model.onnx")
    (folder / "weights").write_bytes(weights())
    began = time.perf_counter()
    recorded = TorchEngine(recipes.Encoder(), folder / "weights", Gpu())
    print(f"loaded and recorded in {time.perf_counter() - began:.1f} s, {recorded.is_recorded=}\n")
    plain = TorchEngine(recipes.Encoder(), folder / "weights", Gpu(sizes=()))
    onnx = OnnxEngine(folder / "model.onnx")
    print("| rows | ONNX Runtime, one core, ms | one by one, ms | recorded, ms | largest difference |")
    print("| --- | --- | --- | --- | --- |")
    for rows in ROWS:
        batch = [tokens(rows)]
        apart = float(np.abs(onnx(batch)[0] - recorded(batch)[0]).max())
        columns = [
            f"{1e3 * seconds(engine, batch, runs):.2f}" for engine, runs in ((onnx, 3), (plain, RUNS), (recorded, RUNS))
        ]
        print(f"| {rows} | {' | '.join(columns)} | {apart:.1e} |", flush=True)


def seconds(engine: Callable[[Sequence[Any]], Any], batch: list[npt.NDArray[Any]], runs: int) -> float:
    """The median of some runs."""
    engine(batch)
    took = []
    for _ in range(runs):
        began = time.perf_counter()
        engine(batch)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def service() -> None:
    """Requests a second and their latency, of a replica on each."""
    print(
        "\n| replica on | connections | requests/s | p50 ms | p99 ms | errors |\n| --- | --- | --- | --- | --- | --- |"
    )
    with tidepool_server.cluster() as running:
        for accelerator in ("CPU", "GPU"):
            name = f"encoder-{accelerator.lower()}"
            expected = running.register(WORKLOAD, name, write, weights(), accelerator=accelerator)
            running.registry.promote(name, 1)
            tidepool_server.tidepool("deploy", name)
            server = running.server(WORKLOAD, name)
            server.await_answer(expected)
            load.closed_loop(server.address, server.request, max(CONNECTIONS), 2.0)
            for connections in CONNECTIONS:
                result = load.closed_loop(server.address, server.request, connections, SECONDS)
                p50, p99 = (1e3 * load.percentile(result.latencies, share) for share in (0.5, 0.99))
                print(
                    f"| {accelerator} | {connections} | {result.rate:.0f} | {p50:.2f} | {p99:.2f} | {result.errors} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
