"""What stands in for a model that fills an accelerator: a deployment that takes its time without computing.

Two cores can't do the work of four accelerators; waiting in its place keeps the proportions. Everything else is real:
requests, replicas, and in `slow_digits` train workers, gradients, checkpoints. This file knows no PyTorch, as a real
replica doesn't, which would take seconds to start.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from tidepool.serve.costs import Costs
from tidepool.serve.vitals import Vitals


class SlowAnswer:
    """A replica that answers one request after another, each in `service_s` seconds; an answer may take `slo_s`."""

    def __init__(self, service_s: float, slo_s: float) -> None:
        self._service_s, self._turn = service_s, asyncio.Semaphore(1)
        self._vitals = Vitals(slo_s, processor_s=lambda: 0.0)
        self._asked, self._waiting, self._ran_s = 0, 0, 0.0
        self._costs = Costs()
        self._costs.observe(1, service_s)

    async def __call__(self, request: Any) -> str:  # noqa: ARG002
        """Answer when it is this request's turn, with what tells this replica apart."""
        self._asked += 1
        self._waiting += 1
        async with self._turn:
            began = time.perf_counter()
            await asyncio.sleep(self._service_s)
            self._costs.observe(1, time.perf_counter() - began)
        self._waiting -= 1
        self._ran_s += self._service_s
        return str(os.getpid())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What a real replica tells Serve's controller for the autoscaling policy."""
        vitals = self._vitals.sample(self._ran_s, self._waiting * self._service_s, self._asked, self._asked)
        return {**vitals, **self._costs.pace(1, 1)}
