"""Checkpoints: all that a run needs, whole or not at all."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from tidepool import checkpoint, storage
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


def test_equal_states_give_equal_digests(tmp_path: Path) -> None:
    one, other = checkpoint.save(str(tmp_path / "a"), state(7)), checkpoint.save(str(tmp_path / "b"), state(7))
    assert one.digest == other.digest
    assert one.digest != checkpoint.save(str(tmp_path / "a"), state(8)).digest


def test_nothing_in_a_checkpoint_is_pickled(tmp_path: Path) -> None:
    saved = checkpoint.save(str(tmp_path), state(1))
    assert {path.suffix for path in Path(saved.uri).iterdir()} == {".safetensors", ".json"}


def test_the_latest_is_the_one_of_the_highest_step(tmp_path: Path) -> None:
    assert checkpoint.latest(str(tmp_path / "none")) is None
    for step in (9, 10, 100):
        saved = checkpoint.save(str(tmp_path), state(step))
    assert checkpoint.latest(str(tmp_path)) == saved


def test_old_checkpoints_and_what_a_killed_writer_left_are_pruned(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(str(tmp_path), state(step))
    (tmp_path / ".building-x").mkdir()
    (tmp_path / ".building-x" / "weights.safetensors").write_bytes(b"half")
    checkpoint.prune(str(tmp_path), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000000002", "step-000000000003"]


def test_a_bucket_keeps_checkpoints_as_a_disk_does() -> None:
    bucket = f"fsspec+memory:///{uuid.uuid4().hex}/checkpoints"
    assert checkpoint.latest(bucket) is None
    for step in (1, 2, 3):
        saved = checkpoint.save(bucket, state(step))
    checkpoint.prune(bucket, keep=2)
    assert checkpoint.latest(bucket) == saved
    assert checkpoint.load(saved.uri).step == 3
    with pytest.raises(StorageError):
        checkpoint.load(saved.uri.replace("3", "1"))


def test_saving_to_a_bucket_reads_no_tensors_back() -> None:
    read: list[str] = []

    class Watched(MemoryFileSystem):
        protocol = "watched"

        def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
            if mode == "rb":
                read.append(path.rpartition("/")[2])
            return super()._open(path, mode, **options)

    fsspec.register_implementation("watched", Watched, clobber=True)
    saved = checkpoint.save(f"fsspec+watched:///{uuid.uuid4().hex}/checkpoints", state(1))
    assert read == ["manifest.json"]
    assert checkpoint.load(saved.uri).step == 1


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "optimizer.json", "state.json"])
def test_a_flipped_byte_is_refused_and_the_one_before_is_used(
    tmp_path: Path, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = checkpoint.save(str(tmp_path), state(1))
    damaged = checkpoint.save(str(tmp_path), state(2))
    path = Path(damaged.uri) / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match=file):
        checkpoint.load(damaged.uri)
    with caplog.at_level(logging.WARNING):
        assert checkpoint.latest(str(tmp_path)) == before
    assert f"passing over checkpoint {damaged.uri}" in caplog.text


def test_a_checkpoint_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    saved = checkpoint.save(str(tmp_path), state(1))
    (Path(saved.uri) / "manifest.json").unlink()
    assert checkpoint.latest(str(tmp_path)) is None


def test_a_flipped_byte_of_a_manifest_is_refused_and_the_one_before_is_used(tmp_path: Path) -> None:
    before = checkpoint.save(str(tmp_path), state(1))
    path = Path(checkpoint.save(str(tmp_path), state(2)).uri) / "manifest.json"
    content = path.read_bytes()
    for word in (b'"step"', b'"kind"', b'"files"', b": 2", b'"sha256"'):
        damaged = bytearray(content)
        damaged[content.index(word) + 2] ^= 1
        path.write_bytes(damaged)
        assert checkpoint.latest(str(tmp_path)) == before


def test_another_kind_of_folder_is_no_checkpoint(tmp_path: Path) -> None:
    with storage.new_folder(str(tmp_path / "step-000000000001"), {"kind": "artifact"}):
        pass
    assert checkpoint.latest(str(tmp_path)) is None
    with pytest.raises(CorruptionError, match="not a checkpoint"):
        checkpoint.load(str(tmp_path / "step-000000000001"))


def test_a_kind_of_storage_that_there_is_not_is_named() -> None:
    with pytest.raises(StorageError, match="foo://x"):
        checkpoint.latest("foo://x")


def test_loading_what_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no such folder"):
        checkpoint.load(str(tmp_path / "step-000000000001"))
