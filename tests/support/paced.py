"""A recipe whose run lasts as long as a test needs it, and a deployment that takes its time."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import torch

from tidepool.recipes.digits import Digits
from tidepool.spec import Spec, load_spec

DIGITS = Path(__file__).parents[2] / "deployments/digits/spec.yaml"
STEP_S = 0.15
ANSWER_S = 0.2


class PacedDigits(Digits):
    """Digits whose steps take a while until a file appears, so that no run ends before the test has seen it."""

    def __init__(self, hurry: str = "") -> None:
        super().__init__()
        self.hurry = hurry

    def loss(self, predictions: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        if self.hurry and not Path(self.hurry).exists():
            slow_down()
        return super().loss(predictions, target)


class SlowAnswer:
    """A replica that takes a while for each request, and answers with what tells it apart."""

    async def __call__(self) -> int:
        """The number of its process."""
        await slow_answer()
        return os.getpid()


def slow_down() -> None:
    time.sleep(STEP_S)


async def slow_answer() -> None:
    await asyncio.sleep(ANSWER_S)


def spec_of(workers: str, epochs: int, hurry: Path, *more: str) -> Spec:
    """Digits on logical accelerators called `slot`, slow until the file `hurry` is there; `more` are overrides."""
    return load_spec(
        DIGITS,
        [
            "recipe=paced:PacedDigits",
            f"params={{hurry: {hurry}}}",
            f"train.num_workers={workers}",
            "train.accelerator=slot",
            f"train.epochs={epochs}",
            *more,
        ],
    )
