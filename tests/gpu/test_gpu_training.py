"""Training on a real GPU: what can't be shown with a logical one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tidepool.recipes.digits import Digits
from tidepool.spec import TrainSpec
from tidepool.train.loop import Trainee

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]


def test_a_gpu_learns_what_a_cpu_learns() -> None:
    rng = np.random.default_rng(0)
    rows = {"pixels": rng.random((29, 64), np.float32), "label": rng.integers(0, 10, 29)}
    spec = TrainSpec(epochs=2, global_batch_size=8)
    losses = []
    for device in ("cpu", "cuda"):
        trainee = Trainee(Digits(hidden=8), spec, rows, device=device)
        losses.append([trainee.step()[0].loss for _ in range(trainee.total_steps)])
        assert next(trainee.network.parameters()).device.type == device
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)
