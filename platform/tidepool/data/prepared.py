"""Prepared data: the folder that `preprocess.prepare` seals, as training and evaluation read it. Imports no Ray."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import parquet

from tidepool import storage
from tidepool.errors import CorruptionError, DataError, RecipeError
from tidepool.recipe import TensorSpec

KIND = "prepared-data"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to train on, whole on disk or in the bucket."""

    uri: str
    digest: str
    """Hex sha256 of all that the rows depend on: source, split, recipe and its params."""
    rows: dict[str, int]
    """Number of rows of "train" and of "test"."""
    preprocessing_state: dict[str, Any]
    name: str

    def load(self, split: str) -> Arrays:
        """Features and target of "train" or "test" as whole arrays, axis 0 the rows in the source's order.

        Raises:
            DataError: no such split.
            StorageError: the files are gone, or differ from what was written.
        """
        if split not in self.rows:
            raise DataError("no such split", seen=split, allowed=", ".join(self.rows))
        return self._read(split, None)

    def raw(self, rows: int | None = None) -> Arrays:
        """The first `rows` held-out rows (all if None) as they came: the signature's inputs and the target."""
        return self._read("raw", rows)

    def _read(self, part: str, rows: int | None) -> Arrays:
        with tempfile.TemporaryDirectory() as scratch:
            folder = storage.fetch(self.uri, Path(scratch))
            manifest = _verified(folder)
            names = sorted(name for name in manifest["files"] if name.startswith(f"{part}/"))
            table = pa.concat_tables(parquet.read_table(folder / name) for name in names).slice(0, rows)
        tensors = manifest["tensors"]["raw" if part == "raw" else "features"]
        return {
            name: to_array(table[name], TensorSpec(name, datatype, (-1, *shape)))
            for name, (datatype, shape) in tensors.items()
        }


def open_prepared(uri: str) -> PreparedData:
    """What was prepared at `uri`, every byte checked.

    Raises:
        CorruptionError: a byte differs, or this is something else.
        StorageError: nothing is there.
    """
    with tempfile.TemporaryDirectory() as scratch:
        manifest = _verified(storage.fetch(uri, Path(scratch)))
    return PreparedData(uri, manifest["digest"], manifest["rows"], manifest["preprocessing"], manifest["name"])


def _verified(folder: Path) -> dict[str, Any]:
    manifest = storage.verify(folder)
    if manifest.get("kind") != KIND:
        raise CorruptionError(f"{folder} is not prepared data", seen=manifest.get("kind"), allowed=KIND)
    return manifest


def to_array(column: pa.ChunkedArray, tensor: TensorSpec) -> npt.NDArray[Any]:
    """An Arrow column as the tensor that a client would send: text as `bytes`, vectors with the tensor's shape.

    Raises:
        RecipeError: the column has other values, or another number of them, than the tensor.
    """
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        array = np.array(column.cast(pa.binary()).to_pylist() or [], dtype=np.object_)
    elif pa.types.is_fixed_size_list(kind):
        array = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    else:
        array = column.to_numpy()
    try:
        return array.reshape(len(column), *tensor.shape[1:]).astype(tensor.dtype, copy=False)
    except ValueError as error:
        allowed = f"{tensor.datatype} of shape {list(tensor.shape)}"
        raise RecipeError(f"column {tensor.name} does not fit its tensor", seen=error, allowed=allowed) from None
