"""Fixtures that several test folders share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile("tidepool", deadline=None)  # CI machines are slow, and a slow example is no bug
settings.load_profile("tidepool")
os.environ.setdefault("TIDEPOOL_STANDBY", "0")  # a process more for every cluster, which hardly any test needs
os.environ.setdefault("RAY_worker_niceness", "0")  # as `tidepool up` has it: else tests without Ray starve the others


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty TIDEPOOL_HOME."""
    monkeypatch.setenv("TIDEPOOL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="session")
def _shut_down_at_the_end() -> Iterator[None]:
    yield
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def ray_cluster(_shut_down_at_the_end: None) -> None:
    """This process is the driver of a Ray cluster of its own, which modules that come one after another share."""
    os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.2"  # as `tidepool up` has it
    os.environ["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "disabled"
    import ray

    if not ray.is_initialized():
        ray.init(address="local", num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=False)


@pytest.fixture(scope="module")
def no_ray_cluster() -> None:
    """This process is no driver, so that it can become that of another cluster."""
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()


@pytest.fixture
def make_artifact(tmp_path: Path) -> Callable[..., Path]:
    """Makes a small artifact of the digits recipe whose logits are `bias` wherever the image is zero."""

    def make(
        favourite: int = 0,
        golden_shift: float = 0.0,
        name: str = "digits",
        serve: Mapping[str, Any] | None = None,
        weights: bytes = b"no weights",
    ) -> Path:
        from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, Golden, answer, new_artifact
        from tidepool.recipes.digits import Digits, Scaling
        from tidepool.serve.engine import OnnxEngine

        recipe, scaling = Digits(), Scaling(16.0)
        spec = {"name": name, "recipe": "tidepool.recipes.digits:Digits", "data": {"source": "x"}}
        folder = tmp_path / f"artifact-{name}-{favourite}-{golden_shift}"
        with new_artifact(
            str(folder),
            name=name,
            recipe_path="tidepool.recipes.digits:Digits",
            params={},
            signature=recipe.signature,
            preprocessing_state=scaling.state(),
            metrics={"accuracy": 0.5},
            lineage={"spec": {**spec, "serve": dict(serve or {})}},
        ) as building:
            (building / WEIGHTS).write_bytes(weights)
            (building / ONNX).write_bytes(_linear_onnx(favourite))
            inputs = {"image": np.random.default_rng(0).uniform(0, 16, (4, 64)).astype(np.float32)}
            outputs = answer(recipe, scaling, OnnxEngine(building / ONNX), inputs)
            outputs["probabilities"] = outputs["probabilities"] + np.float32(golden_shift)
            Golden(inputs, outputs).write(building / GOLDEN)
        return folder

    return make


def _linear_onnx(favourite: int) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(1).normal(0, 0.01, (64, 10)).astype(np.float32)
    bias = np.zeros(10, np.float32)
    bias[favourite] = 5
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["pixels", "w", "b"], ["logits"])],
        "linear",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
