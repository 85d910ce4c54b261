"""Hand-over from training to export: everything that a run needs to go on as if it had never stopped.

A checkpoint is a sealed folder `step-<step>` (see `tidepool.storage`) below the run's `checkpoints/`:
`weights.safetensors`, `optimizer.safetensors` + `optimizer.json`, `state.json`. Nothing in it is pickled.
"""

from __future__ import annotations

import json
import logging
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tidepool import storage
from tidepool.errors import CorruptionError, StorageError

log = logging.getLogger(__name__)

KIND = "checkpoint"

STEP = re.compile(r"step-(\d{12})$")


@dataclass
class TrainState:
    """A run at a step boundary."""

    step: int
    """Optimizer steps done."""
    epoch: int
    """Epoch that the next sample belongs to."""
    position: int
    """Samples of that epoch already used, over all workers together."""
    weights: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    """The optimizer's `state_dict()`."""
    rng: torch.Tensor
    """torch's generator state, uint8."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON-ready: run, digests of data and spec, loss so far."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is whole on disk or in the bucket."""

    uri: str
    step: int
    digest: str


def save(checkpoints: str, state: TrainState) -> Checkpoint:
    """Write `state` below the folder or URI `checkpoints`; it is there whole or not at all.

    Raises:
        StorageError: the disk is full or can't be written; earlier checkpoints stay as they were.
    """
    uri = f"{checkpoints.rstrip('/')}/step-{state.step:012d}"
    facts = {"kind": KIND, "step": state.step}
    with storage.new_folder(uri, facts) as folder:
        tensors: dict[str, torch.Tensor] = {}
        scalars = _split(state.optimizer, tensors)
        _save_tensors(folder / "weights.safetensors", state.weights)
        _save_tensors(folder / "optimizer.safetensors", {**tensors, "rng": state.rng})
        (folder / "optimizer.json").write_text(json.dumps(scalars))
        position = {
            "step": state.step,
            "epoch": state.epoch,
            "position": state.position,
            "facts": state.facts,
        }
        (folder / "state.json").write_text(json.dumps(position))
    return Checkpoint(uri, state.step, storage.digest(storage.read_manifest(uri)))


def load(uri: str) -> TrainState:
    """Read a checkpoint, every byte checked.

    Raises:
        CorruptionError: a byte differs from what was written.
        StorageError: nothing is there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = storage.fetch(uri, Path(scratch))
        _verified(folder)
        tensors = load_file(folder / "optimizer.safetensors")
        rng = tensors.pop("rng")
        return TrainState(
            weights=load_file(folder / "weights.safetensors"),
            optimizer=_join(json.loads((folder / "optimizer.json").read_text()), tensors),
            rng=rng,
            **json.loads((folder / "state.json").read_text()),
        )


def latest(checkpoints: str) -> Checkpoint | None:
    """The newest checkpoint whose bytes are all right; damaged ones are passed over with a warning."""
    for uri in (f"{_root(checkpoints)}/{name}" for name in reversed(_names(checkpoints)) if STEP.match(name)):
        try:
            with tempfile.TemporaryDirectory() as scratch:
                manifest = _verified(storage.fetch(uri, Path(scratch)))
            return Checkpoint(uri, manifest["step"], storage.digest(manifest))
        except StorageError as error:
            log.warning("passing over checkpoint %s: %s", uri, error)
    return None


def prune(checkpoints: str, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints, and what a killed writer left; for the only writer to call."""
    names = _names(checkpoints)
    left = [name for name in names if name.startswith(storage.BUILDING)]
    for name in [name for name in names if STEP.match(name)][:-keep] + left:
        storage.remove(f"{_root(checkpoints)}/{name}")


def _verified(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose bytes are all right.

    Raises:
        CorruptionError: a byte differs, or this is something else.
    """
    manifest = storage.verify(folder)
    if manifest.get("kind") != KIND:
        raise CorruptionError(f"{folder} is not a checkpoint", seen=manifest.get("kind"), allowed=KIND)
    return manifest


def _names(checkpoints: str) -> list[str]:
    """What is in the folder, oldest checkpoint first."""
    from pyarrow import fs

    store, path = storage.filesystem(_root(checkpoints))
    with storage.explained("read", checkpoints):
        found = store.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(info.base_name for info in found)


def _root(checkpoints: str) -> str:
    if storage.is_remote(checkpoints):
        return checkpoints.rstrip("/")
    return str(storage.local_path(checkpoints).absolute())


def _save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    own: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        # Tied weights share memory, which safetensors refuses: each name gets bytes of its own.
        values = tensor.detach().cpu().contiguous()
        memory = values.untyped_storage().data_ptr()
        own[name] = values.clone() if memory in seen else values
        seen.add(memory)
    with storage.explained("write", path):
        try:
            save_file(own, path)
        except OSError:
            raise
        except Exception as error:  # safetensors raises its own type for a full disk
            raise OSError(28 if "No space" in str(error) else 5, str(error)) from error


def _split(tree: Any, tensors: dict[str, torch.Tensor], path: str = "") -> Any:
    """Move the tensors of a state_dict into `tensors`; what remains is JSON with `{"tensor": path}` in their place."""
    if isinstance(tree, torch.Tensor):
        tensors[path] = tree
        return {"tensor": path}
    if isinstance(tree, dict):
        return {"pairs": [[key, _split(value, tensors, f"{path}/{key}")] for key, value in tree.items()]}
    if isinstance(tree, list | tuple):
        return {type(tree).__name__: [_split(value, tensors, f"{path}/{i}") for i, value in enumerate(tree)]}
    return {"value": tree}


def _join(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The inverse of `_split`."""
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "pairs" in tree:
        return {key: _join(value, tensors) for key, value in tree["pairs"]}
    for kind in (list, tuple):
        if kind.__name__ in tree:
            return kind(_join(value, tensors) for value in tree[kind.__name__])
    return tree["value"]
