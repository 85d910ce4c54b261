"""Serving on a real GPU: what can't be shown with a logical one."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from tidepool.evaluate.metrics import predict
from tidepool.recipe import TensorSpec
from tidepool.recipes.digits import Digits
from tidepool.serve.engine import open_engine
from tidepool.serve.torchengine import Gpu, TorchEngine
from tidepool.train import groups

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that torch can use"),
]

WIDTH = 12


class Standardised(torch.nn.Module):
    """Looks at its values to decide what to do, as no recording can."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.linear(x / x.abs().max() if x.abs().max().item() > 1 else x)
        return answer


def recipe(network: torch.nn.Module, shape: tuple[int, ...] = (-1, WIDTH)) -> Any:
    return SimpleNamespace(network=lambda: network, features=(TensorSpec("x", "FP32", shape),))


def engine_of(network: torch.nn.Module, tmp_path: Path, **of_recipe: Any) -> TorchEngine:
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    return TorchEngine(recipe(network, **of_recipe), tmp_path / "weights.safetensors", Gpu())


def rows(count: int, width: int = WIDTH, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, width), np.float32)


@pytest.mark.parametrize("count", [1, 2, 5, 48, 64, 65, 1000])
def test_a_gpu_answers_what_a_cpu_answers_whatever_the_size_of_the_batch(tmp_path: Path, count: int) -> None:
    digits = Digits(hidden=32)
    network = digits.network()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    engine = TorchEngine(digits, tmp_path / "weights.safetensors", Gpu())
    for seed in range(3):  # a recording holds what was left over from the batch before
        features = [rows(count, 64, seed)]
        (answer,) = engine(features)
        np.testing.assert_allclose(answer, predict(network, features)[0], atol=1e-5)


def test_each_thread_gets_its_own_answers_while_another_version_is_loaded(tmp_path: Path) -> None:
    network = torch.nn.Linear(WIDTH, 5)
    asked = [rows(1 + number % 7, seed=number) for number in range(40)]
    expected = [predict(network, [features])[0] for features in asked]
    engine = engine_of(network, tmp_path)
    loaded = threading.Event()

    def ask(start: int) -> int:
        answered = 0
        while not loaded.is_set() or answered < len(asked):
            number = (start + answered) % len(asked)
            np.testing.assert_allclose(engine([asked[number]])[0], expected[number], atol=1e-5)
            answered += 1
        return answered

    with ThreadPoolExecutor(4) as threads:
        answering = [threads.submit(ask, start) for start in range(4)]
        try:
            others = [engine_of(torch.nn.Linear(WIDTH, 2), tmp_path) for _ in range(5)]
        finally:
            loaded.set()
        assert all(each.result() >= len(asked) for each in answering)
    assert all(other.is_recorded for other in others)


def test_a_network_that_cannot_be_recorded_answers_all_the_same(tmp_path: Path) -> None:
    network = Standardised()
    features = [rows(4)]
    expected = predict(network, features)[0]
    engine = engine_of(network, tmp_path)
    assert not engine.is_recorded
    np.testing.assert_allclose(engine(features)[0], expected, atol=1e-5)


def test_rows_of_any_length_are_not_recorded(tmp_path: Path) -> None:
    engine = engine_of(torch.nn.AdaptiveAvgPool1d(2), tmp_path, shape=(-1, 1, -1))
    assert not engine.is_recorded
    (answer,) = engine([np.ones((3, 1, 8), np.float32)])
    np.testing.assert_array_equal(answer, np.ones((3, 1, 2), np.float32))


def test_a_replica_with_a_gpu_runs_torch_on_it(tmp_path: Path) -> None:
    save_file(Digits().network().state_dict(), tmp_path / "weights.safetensors")
    artifact: Any = SimpleNamespace(recipe=Digits, weights=tmp_path / "weights.safetensors")
    before = torch.cuda.memory_allocated()
    engine = open_engine(artifact, "GPU")
    assert engine.backend == TorchEngine.backend
    assert torch.cuda.memory_allocated() > before


LOST = """
import sys, types, numpy as np, torch
from pathlib import Path
from safetensors.torch import save_file
from tidepool.recipe import TensorSpec
from tidepool.serve.torchengine import Gpu, TorchEngine

network, weights = torch.nn.Embedding(10, 3), Path(sys.argv[1])
save_file(network.state_dict(), weights)
recipe = types.SimpleNamespace(network=lambda: network, features=(TensorSpec("word", "INT64", (-1,)),))
engine = TorchEngine(recipe, weights, Gpu())
engine([np.zeros(1, np.int64)])
assert engine.fault is None
try:
    engine([np.full(1, 10)])
except RuntimeError:
    print("fault:", engine.fault)
"""


def test_a_gpu_that_a_request_has_lost_is_known_to_be(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOST, str(tmp_path / "weights")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert re.search("^fault: (?!None)", done.stdout, re.MULTILINE), done.stderr


def test_a_group_of_nccl_forms_sums_and_ends() -> None:
    store = groups.opened("127.0.0.1")
    for epoch in range(2):
        circle = groups.form(store, epoch, 0, 1, torch.device("cuda"))
        values = torch.ones(4, device="cuda")
        circle.allreduce(values).wait()
        assert (circle.rank(), circle.size(), values.tolist()) == (0, 1, [1.0] * 4)
        circle.abort()
