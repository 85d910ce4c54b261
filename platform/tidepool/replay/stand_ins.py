"""What stands in for models that fill an accelerator: a deployment and a recipe that take their time without computing.

Two cores can't do the work of four accelerators; waiting in its place keeps the proportions. Everything else is real:
requests, replicas, train workers, gradients, checkpoints.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import torch

from tidepool.recipes.digits import Digits
from tidepool.serve.vitals import Vitals


class SlowAnswer:
    """A replica that answers one request after another, each in `service_s` seconds; an answer may take `slo_s`."""

    def __init__(self, service_s: float, slo_s: float) -> None:
        self._service_s, self._turn = service_s, asyncio.Semaphore(1)
        self._vitals = Vitals(slo_s, processor_s=lambda: 0.0)
        self._asked, self._waiting, self._ran_s = 0, 0, 0.0

    async def __call__(self, request: Any) -> str:  # noqa: ARG002
        """Answer when it is this request's turn, with what tells this replica apart."""
        self._asked += 1
        self._waiting += 1
        async with self._turn:
            await asyncio.sleep(self._service_s)
        self._waiting -= 1
        self._ran_s += self._service_s
        return str(os.getpid())

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What a real replica tells Serve's controller for the autoscaling policy."""
        return self._vitals.sample(self._ran_s, self._waiting * self._service_s, self._asked)


class SlowDigits(Digits):
    """Digits at `sample_s` seconds of a worker's time for each sample, so that more workers take less for a step."""

    def __init__(self, sample_s: float = 0.0) -> None:
        super().__init__()
        self._sample_s = sample_s

    def loss(self, predictions: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        """That of digits, later."""
        time.sleep(len(target) * self._sample_s)
        return super().loss(predictions, target)
