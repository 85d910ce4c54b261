"""Hand-over from export to registry to replica: a model that answers, and nothing that has to be looked up elsewhere.

An artifact is a sealed folder (see `tidepool.storage`). Its manifest holds the recipe's path and params, the
signature, the fitted preprocessing, metrics and lineage; its files are `model.onnx`, `weights.safetensors` and
`golden.npz`. Its digest stands for all of it. Importing or opening one needs neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool import storage
from tidepool.errors import CorruptionError
from tidepool.recipe import Batch, Preprocessing, Recipe, Signature, load_recipe
from tidepool.settings import Settings

ONNX = "model.onnx"
WEIGHTS = "weights.safetensors"
GOLDEN = "golden.npz"

COPIES_KEPT_S = 7 * 86_400.0
"""A copy of a remote artifact that nobody has opened for so long is deleted when the next one is opened."""


@dataclass(frozen=True)
class Artifact:
    """An opened artifact."""

    uri: str
    """Where it was opened."""
    folder: Path
    name: str
    recipe_path: str
    params: Mapping[str, Any]
    signature: Signature
    preprocessing_state: Mapping[str, Any]
    metrics: Mapping[str, float]
    lineage: Mapping[str, Any]
    """Digests of data, checkpoint and spec, and the spec itself."""
    digest: str

    @property
    def onnx(self) -> Path:
        """The ONNX model file."""
        return self.folder / ONNX

    @property
    def weights(self) -> Path:
        """The safetensors file of the (pruned, unquantised) network."""
        return self.folder / WEIGHTS

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def recipe(self) -> Recipe:
        """The recipe, made with this artifact's params."""
        return load_recipe(self.recipe_path, self.params)

    def preprocessing(self) -> Preprocessing:
        """The preprocessing as it was fitted on the training rows."""
        return self.recipe().preprocessing(**self.preprocessing_state)

    def golden(self) -> Golden:
        """Rows with the answers that the trained network gave for them."""
        with np.load(self.folder / GOLDEN, allow_pickle=False) as arrays:
            return Golden.from_arrays(arrays)


@dataclass(frozen=True)
class Golden:
    """Raw input rows (the signature's inputs) and the answers (the signature's outputs) of the trained network."""

    inputs: dict[str, npt.NDArray[Any]]
    outputs: dict[str, npt.NDArray[Any]]

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Golden:
        """From the flat names that `write` stores."""
        sides: dict[str, dict[str, npt.NDArray[Any]]] = {"input": {}, "output": {}}
        for key in arrays:
            side, _, name = key.partition(".")
            values = arrays[key]
            sides[side][name] = _to_objects(values) if values.dtype.kind == "S" else values
        return cls(sides["input"], sides["output"])

    def write(self, path: Path) -> None:
        """Store as .npz without pickle; BYTES become fixed-length strings."""
        flat = {f"input.{n}": v for n, v in self.inputs.items()} | {f"output.{n}": v for n, v in self.outputs.items()}
        np.savez(path, **{k: _to_strings(v) if v.dtype == np.object_ else v for k, v in flat.items()})  # type: ignore[arg-type]


def _to_strings(values: npt.NDArray[Any]) -> npt.NDArray[np.bytes_]:
    """BYTES as fixed-length strings, each ended by a dot: numpy drops zero bytes at the end of such strings."""
    return np.array([value + b"." for value in values.reshape(-1)], np.bytes_).reshape(values.shape)


def _to_objects(values: npt.NDArray[np.bytes_]) -> npt.NDArray[np.object_]:
    """The inverse of `_to_strings`."""
    objects = np.empty(values.size, np.object_)
    objects[:] = [value[:-1] for value in values.reshape(-1)]
    return objects.reshape(values.shape)


@contextlib.contextmanager
def new_artifact(
    uri: str,
    *,
    name: str,
    recipe_path: str,
    params: Mapping[str, Any],
    signature: Signature,
    preprocessing_state: Mapping[str, Any],
    metrics: Mapping[str, float],
    lineage: Mapping[str, Any],
) -> Iterator[Path]:
    """A folder to put `model.onnx`, `weights.safetensors` and `golden.npz` in; sealed as an artifact at `uri`.

    Raises:
        StorageError: it can't be written; nothing appears at `uri` then.
    """
    facts = {
        "kind": "artifact",
        "name": name,
        "recipe": recipe_path,
        "params": dict(params),
        "signature": signature.to_json(),
        "pictures": signature.pictures,
        "preprocessing": dict(preprocessing_state),
        "metrics": dict(metrics),
        "lineage": dict(lineage),
    }
    with storage.new_folder(uri, facts) as folder:
        yield folder


def open_artifact(uri: str, cache: Path | None = None, expected_digest: str | None = None) -> Artifact:
    """Open the artifact at `uri`, every byte checked; a remote one is copied below `cache` (in the home) first.

    Raises:
        CorruptionError: a byte differs, or the digest is not `expected_digest`.
        StorageError: nothing is there.
    """
    folder = storage.fetch(uri, cache or Settings().root / "cache")
    try:
        manifest = storage.verify(folder)
        digest = storage.digest(manifest)
        if manifest.get("kind") != "artifact" or expected_digest not in (None, digest):
            raise CorruptionError(
                f"{uri} is not the artifact that was registered", seen=digest, allowed=expected_digest
            )
    except CorruptionError:
        if storage.is_remote(uri):
            shutil.rmtree(folder, ignore_errors=True)  # the copy may be at fault: the next call takes a new one
        raise
    if storage.is_remote(uri):
        _forget_copies(folder)
    return Artifact(
        uri=uri,
        folder=folder,
        name=manifest["name"],
        recipe_path=manifest["recipe"],
        params=manifest["params"],
        signature=Signature.from_json(manifest["signature"], manifest.get("pictures")),
        preprocessing_state=manifest["preprocessing"],
        metrics=manifest["metrics"],
        lineage=manifest["lineage"],
        digest=digest,
    )


def _forget_copies(opened: Path) -> None:
    """Delete the copies beside this one that nobody needs any more."""
    with contextlib.suppress(OSError):  # another process was quicker
        os.utime(opened)
        for copy in opened.parent.glob("[0-9a-f]" * 32):
            if time.time() - copy.stat().st_mtime > COPIES_KEPT_S:
                shutil.rmtree(copy)


def answer(recipe: Recipe, preprocessing: Preprocessing, run: Any, batch: Batch) -> dict[str, npt.NDArray[Any]]:
    """Raw inputs to the signature's outputs: preprocess, `run` the network on the features, postprocess.

    `run` maps the features, in the recipe's order, to the predictions, in order. Batch jobs, parity checks and
    replicas all answer through this one function, which is why they agree.
    """
    features = preprocessing.apply(batch)
    predictions = run([features[spec.name] for spec in recipe.features])
    named = {spec.name: values for spec, values in zip(recipe.predictions, predictions, strict=True)}
    return recipe.postprocess(named)
