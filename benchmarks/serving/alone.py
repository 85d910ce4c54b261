"""The network without any server: a tight loop at the batch size with the most rows a second."""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path

import networks
import numpy as np
from load import Result
from workloads import Workload

SIZES = (1, 2, 4, 8, 16, 32)


class Alone:
    """One session of a workload's network in this process, on one thread."""

    def __init__(self, workload: Workload) -> None:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "network.onnx"
            workload.write(model)
            self._session = networks.session(model)
        self._workload = workload
        self.batch = max(SIZES, key=lambda size: self._measure(size, 1.0).rate)
        """Rows of the best batch."""

    def measure(self, seconds: float) -> Result:
        """Run the best batch over and over. The latency of a row is that of its batch."""
        return self._measure(self.batch, seconds)

    def _measure(self, size: int, seconds: float) -> Result:
        rows = np.repeat(self._workload.row, size, axis=0)
        run = partial(self._session.run, None, {self._workload.input: rows})
        run()
        result, began = Result(seconds), time.perf_counter()
        while (start := time.perf_counter()) < began + seconds:
            run()
            result.latencies += [time.perf_counter() - start] * size
        result.seconds = time.perf_counter() - began
        return result
