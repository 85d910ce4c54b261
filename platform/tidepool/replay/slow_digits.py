"""What stands in for training that fills an accelerator: see `stand_ins`."""

from __future__ import annotations

import time

import torch

from tidepool.recipes.digits import Digits


class SlowDigits(Digits):
    """Digits at `sample_s` seconds of a worker's time for each sample, so that more workers take less for a step."""

    def __init__(self, sample_s: float = 0.0) -> None:
        super().__init__()
        self._sample_s = sample_s

    def loss(self, predictions: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        """That of digits, later."""
        time.sleep(len(target) * self._sample_s)
        return super().loss(predictions, target)
