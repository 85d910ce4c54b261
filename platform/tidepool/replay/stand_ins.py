"""What stands in for models that fill an accelerator: a deployment and a recipe that take their time without computing.

Two cores can't do the work of four accelerators; waiting in its place keeps the proportions. Everything else is real:
requests, replicas, train workers, gradients, checkpoints.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import torch

from tidepool.recipes.digits import Digits


class SlowAnswer:
    """A replica that answers one request after another, each in `service_s` seconds."""

    def __init__(self, service_s: float) -> None:
        self._service_s, self._turn = service_s, asyncio.Semaphore(1)

    async def __call__(self, request: Any) -> str:  # noqa: ARG002
        """Answer when it is this request's turn."""
        async with self._turn:
            await asyncio.sleep(self._service_s)
        return "done"


class SlowDigits(Digits):
    """Digits at `sample_s` seconds of a worker's time for each sample, so that more workers take less for a step."""

    def __init__(self, sample_s: float = 0.0) -> None:
        super().__init__()
        self._sample_s = sample_s

    def loss(self, predictions: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        """That of digits, later."""
        time.sleep(len(target) * self._sample_s)
        return super().loss(predictions, target)
