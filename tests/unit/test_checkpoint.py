"""Checkpoints: all that a run needs, whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tidepool import checkpoint
from tidepool.checkpoint import TrainState
from tidepool.errors import CorruptionError, StorageError


def state(step: int) -> TrainState:
    torch.manual_seed(step)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return TrainState(
        step, 1, 64, dict(network.state_dict()), optimizer.state_dict(), torch.get_rng_state(), {"loss": 0.5}
    )


def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path) -> None:
    before = state(7)
    after = checkpoint.load(checkpoint.save(str(tmp_path), before).uri)
    assert (after.step, after.epoch, after.position, after.facts) == (7, 1, 64, {"loss": 0.5})
    assert torch.equal(after.rng, before.rng)
    for name, tensor in before.weights.items():
        assert torch.equal(after.weights[name], tensor)
    optimizer = torch.optim.Adam(torch.nn.Linear(3, 2).parameters(), lr=0.1)
    optimizer.load_state_dict(after.optimizer)
    assert optimizer.state_dict()["param_groups"] == before.optimizer["param_groups"]


def test_tied_weights_are_kept(tmp_path: Path) -> None:
    tied = torch.ones(2, 2)
    before = TrainState(1, 0, 0, {"a": tied, "b": tied}, {}, torch.get_rng_state())
    after = checkpoint.load(checkpoint.save(str(tmp_path), before).uri)
    assert torch.equal(after.weights["a"], after.weights["b"])


def test_the_latest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path / "none")) is None
    for step in (9, 10, 100):
        saved = checkpoint.save(str(tmp_path), state(step))
    assert checkpoint.latest(str(tmp_path)) == saved


def test_old_checkpoints_are_pruned(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(str(tmp_path), state(step))
    checkpoint.prune(str(tmp_path), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000000002", "step-000000000003"]


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "optimizer.json", "state.json"])
def test_a_flipped_byte_is_refused_and_the_one_before_is_used(tmp_path: Path, file: str) -> None:
    before = checkpoint.save(str(tmp_path), state(1))
    damaged = checkpoint.save(str(tmp_path), state(2))
    path = Path(damaged.uri) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match=file):
        checkpoint.load(damaged.uri)
    assert checkpoint.latest(str(tmp_path)) == before


def test_a_checkpoint_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    saved = checkpoint.save(str(tmp_path), state(1))
    (Path(saved.uri) / "manifest.json").unlink()
    assert checkpoint.latest(str(tmp_path)) is None


def test_loading_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        checkpoint.load(str(tmp_path / "step-000000000001"))
