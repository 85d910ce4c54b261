from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tidepool.artifact import open_artifact
from tidepool.errors import ClusterError, RecipeError, StorageError
from tidepool.evaluate.metrics import predict
from tidepool.recipes.digits import Digits
from tidepool.serve import engine
from tidepool.serve.engine import OnnxEngine, open_engine
from tidepool.serve.torchengine import TorchEngine


def test_without_a_real_gpu_replicas_run_the_onnx_model(make_artifact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "GPU_FILES", ())
    artifact = open_artifact(str(make_artifact(3)))
    for accelerator in ("CPU", "auto", "GPU", "slot"):
        opened = open_engine(artifact, accelerator)
        assert isinstance(opened, OnnxEngine)
        assert opened([np.zeros((2, 64), np.float32)])[0].argmax(axis=1).tolist() == [3, 3]


def test_a_gpu_that_torch_cannot_use_is_an_error_and_no_slow_replica(
    make_artifact: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "GPU_FILES", ("/dev/null",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    artifact = open_artifact(str(make_artifact()))
    assert isinstance(open_engine(artifact, "CPU"), OnnxEngine)
    with pytest.raises(ClusterError, match=r"torch can't use this machine's GPU(.|\n)*serve.accelerator"):
        open_engine(artifact, "GPU")


def test_torch_answers_what_the_trained_network_answers(tmp_path: Path) -> None:
    digits = Digits(hidden=16)
    network = digits.network()
    save_file(network.state_dict(), tmp_path / "weights")
    features = [np.random.default_rng(0).random((5, 64), np.float32)]
    features[0].flags.writeable = False
    answers = TorchEngine(digits, tmp_path / "weights", "cpu")(features)
    np.testing.assert_allclose(answers[0], predict(network, features)[0], atol=1e-6)


def test_weights_that_are_none_or_of_another_network_are_refused(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(b"no weights")
    with pytest.raises(StorageError, match="can't be read"):
        TorchEngine(Digits(), tmp_path / "none", "cpu")
    save_file(Digits(hidden=16).network().state_dict(), tmp_path / "other")
    with pytest.raises(RecipeError, match="don't fit"):
        TorchEngine(Digits(hidden=8), tmp_path / "other", "cpu")
