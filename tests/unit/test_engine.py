"""Engines, as far as a machine without a GPU can show; the rest is in tests/gpu."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save_file

from tidepool.artifact import open_artifact
from tidepool.errors import ClusterError, RecipeError, StorageError
from tidepool.evaluate.metrics import predict
from tidepool.recipe import TensorSpec
from tidepool.recipes.digits import Digits
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.engine import OnnxEngine, open_engine
from tidepool.serve.torchengine import Device, Network, Tensors, TorchEngine

WIDTH = 5


class Recorder(Device):
    """On CPU, with all that a GPU has but its own memory; lost, where that is asked for."""

    sizes = (1, 2, 4, 8)

    def __init__(self, lost: str = "") -> None:
        super().__init__()
        self.replayed: list[int] = []
        self.lost = lost

    def record(self, network: Network, inputs: Sequence[torch.Tensor]) -> Callable[[], Tensors]:
        replay = super().record(network, inputs)

        def counted() -> Tensors:
            self.replayed.append(len(inputs[0]))
            return replay()

        return counted

    def check(self) -> None:
        if self.lost:
            raise RuntimeError(self.lost)


class Pair(torch.nn.Module):
    """Two features, one of them of whole numbers, to two predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = torch.nn.Embedding(10, 3), torch.nn.Linear(WIDTH, 3)

    def forward(self, x: torch.Tensor, word: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = self.linear(x) + self.words(word)
        return both, both.sum(dim=1)


FEATURES = (TensorSpec("x", "FP32", (-1, WIDTH)), TensorSpec("word", "INT64", (-1,)))


def engine_of(
    network: torch.nn.Module, folder: Path, device: Device | None = None, features: Any = FEATURES
) -> TorchEngine:
    save_file(network.state_dict(), folder / "weights")
    recipe: Any = SimpleNamespace(network=lambda: network, features=features)
    return TorchEngine(recipe, folder / "weights", device or Device())


def rows(count: int, seed: int = 0) -> list[npt.NDArray[Any]]:
    chance = np.random.default_rng(seed)
    return [chance.random((count, WIDTH), np.float32), chance.integers(0, 10, count)]


def test_without_a_real_gpu_replicas_run_the_onnx_model(make_artifact: Any) -> None:
    artifact = open_artifact(str(make_artifact(3)))
    for accelerator in ("CPU", "auto", "GPU", "slot"):
        opened = open_engine(artifact, accelerator, gpu_files=())
        assert isinstance(opened, OnnxEngine)
        assert opened([np.zeros((2, 64), np.float32)])[0].argmax(axis=1).tolist() == [3, 3]


OPEN = """
import sys
from tidepool.artifact import open_artifact
from tidepool.serve.engine import open_engine

artifact = open_artifact(sys.argv[1])
print(open_engine(artifact, "CPU", gpu_files=("/dev/null",)).backend)
open_engine(artifact, "GPU", gpu_files=("/dev/null",))
"""


def test_a_gpu_that_torch_cannot_use_is_an_error_and_no_slow_replica(make_artifact: Any) -> None:
    # A process of its own, from which the GPUs of a machine that has some are hidden.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HIP_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", OPEN, str(make_artifact())]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout == "tidepool_onnx\n"
    for said in ("ClusterError: torch can't use the GPU", "CUDA_VISIBLE_DEVICES", "serve.accelerator to CPU"):
        assert said in done.stderr


def test_torch_answers_what_the_trained_network_answers(tmp_path: Path) -> None:
    digits = Digits(hidden=16)
    network = digits.network()
    save_file(network.state_dict(), tmp_path / "weights")
    features = [np.random.default_rng(0).random((5, 64), np.float32)]
    features[0].flags.writeable = False
    answers = TorchEngine(digits, tmp_path / "weights", Device())(features)
    np.testing.assert_allclose(answers[0], predict(network, features)[0], atol=1e-6)


@pytest.mark.parametrize(("count", "recorded"), [(1, [1]), (2, [2]), (3, [4]), (5, [8]), (8, [8]), (9, [])])
def test_a_batch_takes_the_next_larger_recording_and_what_is_left_over_in_it_changes_nothing(
    tmp_path: Path, count: int, recorded: list[int]
) -> None:
    device, network = Recorder(), Pair()
    engine = engine_of(network, tmp_path, device)
    assert engine.is_recorded
    for seed in range(3):
        device.replayed.clear()
        answers = engine(rows(count, seed))
        for answer, expected in zip(answers, predict(network, rows(count, seed)), strict=True):
            np.testing.assert_allclose(answer, expected, atol=1e-6)
        assert device.replayed == recorded


class Wayward(torch.nn.Module):
    """Can't be recorded: looks at a value, or has no rows."""

    def __init__(self, failing: bool) -> None:
        super().__init__()
        self.failing = failing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.failing:
            return x / torch.tensor(1 // int(x.max().item() > 0))
        return x if x.max().item() > 0 else x.sum()


@pytest.mark.parametrize("failing", [True, False])
def test_a_network_that_cannot_be_recorded_answers_all_the_same(tmp_path: Path, failing: bool) -> None:
    engine = engine_of(Wayward(failing), tmp_path, Recorder(), FEATURES[:1])
    assert not engine.is_recorded
    np.testing.assert_array_equal(engine([np.ones((2, WIDTH), np.float32)])[0], np.ones((2, WIDTH)))


@pytest.mark.parametrize(
    ("wrong", "seen"),
    [
        ([np.ones((2, 1), np.float32), np.zeros(2, np.int64)], "feature x.*float32 .2, 1.*Allowed: float32 .2, 5"),
        ([np.ones((2, WIDTH)), np.zeros(2, np.int64)], "feature x. Seen: float64"),
        ([np.ones((2, WIDTH), np.float32), np.zeros(1, np.int64)], "feature word. Seen: int64 .1."),
        ([np.ones((2, WIDTH), np.float32), np.zeros((2, 1), np.int64)], "feature word. Seen: int64 .2, 1."),
    ],
)
@pytest.mark.parametrize("device", [Device(), Recorder()])
def test_features_that_are_not_the_recipes_are_neither_stretched_nor_converted(
    tmp_path: Path, device: Device, wrong: list[npt.NDArray[Any]], seen: str
) -> None:
    with pytest.raises(RecipeError, match=seen):
        engine_of(Pair(), tmp_path, device)(wrong)


def test_a_replica_whose_device_is_lost_is_not_healthy(tmp_path: Path, make_artifact: Any) -> None:
    plane, device = Dataplane("digits"), Recorder()
    engine = engine_of(Pair(), tmp_path, device)
    loaded = load_version("1", open_artifact(str(make_artifact())))
    plane.flip(Lineup("1", {"1": replace(loaded, engine=engine)}))
    unknown_word = [np.ones((1, WIDTH), np.float32), np.array([10])]
    with pytest.raises((RuntimeError, IndexError)):
        engine(unknown_word)
    plane.check()
    device.lost = "device-side assert\nand much more"
    with pytest.raises((RuntimeError, IndexError)):
        engine(unknown_word)
    with pytest.raises(ClusterError, match=r"Seen: device-side assert\. "):
        plane.check()


def test_weights_that_are_none_or_of_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"no weights")
    for file in ("none", "nowhere"):
        with pytest.raises(StorageError, match="can't be read"):
            TorchEngine(Digits(), tmp_path / file, Device())
    save_file(Digits(hidden=16).network().state_dict(), tmp_path / "other")
    with pytest.raises(RecipeError, match="don't fit"):
        TorchEngine(Digits(hidden=8), tmp_path / "other", Device())
