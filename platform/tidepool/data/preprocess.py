"""From a source to the rows that a run trains on: read, check, split, fit, apply, write. Once for equal inputs.

    source -> sources.read -> checks.check -> split -> Preprocessing.fit -> apply -> <root>/<name>/<digest16>
        train/*.parquet  test/*.parquet   features and target
        raw/*.parquet                     the held-out rows as they came: the signature's inputs and the target
        manifest.json                     written last: without it the folder does not count

Whether a row is held out depends on the seed and the row's number alone, and a file's name and bytes on its rows
alone. So any number of workers prepare the same bytes, two runs that prepare the same thing at once do no harm, and
a run that was killed is simply repeated.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
from pyarrow import parquet

from tidepool import storage
from tidepool.data import sources
from tidepool.data.checks import ROW, check
from tidepool.data.mapreduce import map_reduce, mix
from tidepool.data.prepared import KIND, Arrays, PreparedData, open_prepared, to_array
from tidepool.data.tasks import carries_errors, cpus_per_task, raise_carried, silent_ray_data
from tidepool.errors import CorruptionError, DataError, RecipeError, StorageError, TidepoolError
from tidepool.recipe import DATATYPES, Preprocessing, Recipe
from tidepool.spec import DataSpec, Spec
from tidepool.telemetry.progress import Progress, quiet

if TYPE_CHECKING:
    from ray.data import Dataset

__all__ = ["PreparedData", "apply", "held_out", "identity", "open_prepared", "prepare"]

FORMAT = 1
"""Counted up when the layout changes, so that older folders are not taken for new ones."""

MOST_CLASSES = 1000
"""A target with more distinct values than this is no class label: they are not counted."""


def prepare(spec: Spec, recipe: Recipe, root: str, progress: Progress = quiet) -> PreparedData:
    """Prepare `spec.data` for `recipe` below the folder or URI `root`, or find it prepared.

    Raises:
        DataError: the source is missing, corrupt, fails a check, or is too small to split.
        RecipeError: the preprocessing failed, or gave other tensors than the recipe's features.
        StorageError: the place can't be written; nothing there counts as prepared then.
    """
    _check_names(recipe)
    digest = identity(spec, recipe)
    base = root if storage.is_remote(root) else str(storage.local_path(root).absolute())
    uri = f"{base.rstrip('/')}/{spec.name}/{digest[:16]}"
    if found := _found(uri, progress):
        return found

    progress("read", 0, 1, spec.data.source)
    rows = check(sources.read(spec.data.source, recipe), recipe.columns, progress)
    training = _training_rows(rows, spec.data)
    counts = {"train": training.count(), "test": rows.count() - training.count()}
    if not all(counts.values()):
        raise DataError("a split has no rows", seen=counts, allowed="at least one row each",
                        remedy="use more rows, or another data.test_fraction or data.seed")  # fmt: skip
    preprocessing, state = _fit(recipe, training, progress)
    parts = _write(rows, recipe, preprocessing, spec.data, uri, progress)
    splits = {split: [part for part in parts if part["split"] == split] for split in ("train", "test", "raw")}
    facts: dict[str, Any] = {
        "kind": KIND,
        "name": spec.name,
        "digest": digest,
        "source": spec.data.source,
        "rows": counts,
        "classes": {split: _sum_classes(splits[split]) for split in counts},
        "tensors": {
            "features": _common_tensors(splits["train"] + splits["test"], recipe),
            "raw": _common_tensors(splits["raw"], recipe),
        },
        "preprocessing": state,
    }
    storage.seal(uri, {part["name"]: part["entry"] for part in parts}, facts)
    progress("prepare", 1, 1, f"{counts['train']:,} training and {counts['test']:,} held-out rows in {uri}")
    return PreparedData(uri, digest, counts, state, spec.name)


def identity(spec: Spec, recipe: Recipe) -> str:
    """Hex sha256 of what the prepared rows depend on; the recipe counts with the text of its module.

    Raises:
        DataError: the source is missing.
    """
    kind = type(recipe)
    module = inspect.getmodule(kind)
    document = {
        "format": FORMAT,
        "source": sources.digest(spec.data.source, recipe),
        "split": spec.data.model_dump(mode="json", exclude={"source"}),
        "recipe": f"{kind.__module__}:{kind.__qualname__}",
        "code": inspect.getsource(module) if module else "",
        "params": spec.model_dump(mode="json")["params"],
    }
    return storage.digest(document)


def held_out(numbers: npt.NDArray[np.int64], data: DataSpec) -> npt.NDArray[np.bool_]:
    """Which rows go to "test": those whose number and the seed hash to the lowest `test_fraction` of 64 bits."""
    seed = mix(np.array([data.seed], np.uint64))
    return mix(numbers.astype(np.uint64) ^ seed) < np.uint64(int(data.test_fraction * 2**64))


def _check_names(recipe: Recipe) -> None:
    undeclared = {recipe.target, *(tensor.name for tensor in recipe.signature.inputs)} - set(recipe.columns)
    if undeclared:
        raise RecipeError("inputs and target need a check each", seen=f"none for {', '.join(sorted(undeclared))}",
                          allowed=", ".join(recipe.columns), remedy="add them to the recipe's columns")  # fmt: skip
    if recipe.target in {tensor.name for tensor in recipe.features}:
        raise RecipeError("target and feature have one name", seen=recipe.target, remedy="rename the feature")


def _found(uri: str, progress: Progress) -> PreparedData | None:
    try:
        data = open_prepared(uri)
    except StorageError as error:
        if isinstance(error, CorruptionError):
            progress("prepare", 0, 1, f"what is in {uri} is not whole and is made anew: {error}")
        return None
    progress("prepare", 1, 1, f"reused {uri}")
    return data


def _training_rows(rows: Dataset, data: DataSpec) -> Dataset:
    def keep(block: pa.Table) -> pa.Table:
        return block.filter(pa.array(~held_out(block[ROW].to_numpy(), data))).drop_columns([ROW])

    with silent_ray_data():
        return rows.map_batches(keep, batch_size=None, batch_format="pyarrow", num_cpus=cpus_per_task()).materialize()


def _fit(recipe: Recipe, rows: Dataset, progress: Progress) -> tuple[Preprocessing, dict[str, Any]]:
    """The fitted preprocessing, and its fields as JSON gives them back."""

    def over_rows(
        map: Callable[[pa.Table], pa.Table],
        reduce: Callable[[pa.Table], pa.Table],
        combine: Callable[[pa.Table], pa.Table] | None = None,
    ) -> pa.Table:
        return map_reduce(rows, map, reduce, combine)

    progress("fit", 0, 1)
    with _told_as_recipe_error(f"{recipe.preprocessing.__name__}.fit"):
        fitted = recipe.preprocessing.fit(over_rows)
        state: dict[str, Any] = json.loads(json.dumps(fitted.state(), allow_nan=False))
    progress("fit", 1, 1)
    return fitted, state


def _write(
    rows: Dataset, recipe: Recipe, preprocessing: Preprocessing, data: DataSpec, uri: str, progress: Progress
) -> list[dict[str, Any]]:
    """Apply the preprocessing to every block and write its files; what was written, in the order of the names."""
    progress("write", 0, 1)
    with silent_ray_data():
        written = rows.map_batches(
            carries_errors(_write_block),
            batch_size=None,
            batch_format="pyarrow",
            fn_kwargs={"recipe": recipe, "preprocessing": preprocessing, "data": data, "uri": uri},
            num_cpus=cpus_per_task(),
        )
        blocks = ray.get(written.to_arrow_refs())
    for block in blocks:
        raise_carried(block)
    progress("write", 1, 1)
    parts = [json.loads(part) for block in blocks for part in block["part"].to_pylist()]
    return sorted(parts, key=lambda part: str(part["name"]))


def _write_block(
    block: pa.Table, recipe: Recipe, preprocessing: Preprocessing, data: DataSpec, uri: str
) -> Iterator[pa.Table]:
    """Runs in a Ray Data task on one block: a file per split, named by the block's first row; tells what it wrote."""
    numbers = block[ROW].to_numpy()
    mask = held_out(numbers, data)
    parts = []
    for split, chosen in (("train", ~mask), ("test", mask)):
        rows = block.filter(pa.array(chosen))
        if not rows.num_rows:
            continue
        target = rows[recipe.target]
        features = apply(recipe, preprocessing, {t.name: to_array(rows[t.name], t) for t in recipe.signature.inputs})
        shapes = {t.name: (t.datatype, features[t.name].shape[1:]) for t in recipe.features}
        table = pa.table({name: _to_column(array) for name, array in features.items()} | {recipe.target: target})
        parts.append(_write_part(uri, split, int(numbers[0]), table, shapes))
        if split == "test":
            inputs = {t.name: (t.datatype, t.shape[1:]) for t in recipe.signature.inputs if t.name != recipe.target}
            names = [*inputs, recipe.target]
            parts.append(_write_part(uri, "raw", int(numbers[0]), rows.select(names), inputs))
    yield pa.table({"part": [json.dumps(part) for part in parts]})


def apply(recipe: Recipe, preprocessing: Preprocessing, batch: Arrays) -> Arrays:
    """`preprocessing.apply`, its result held against the recipe's features.

    Raises:
        RecipeError: it failed, or names, dtypes or number of rows are not those that were promised.
    """
    name = f"{type(preprocessing).__name__}.apply"
    with _told_as_recipe_error(name):
        features = preprocessing.apply(batch)
    (rows,) = {len(array) for array in batch.values()}
    promised = {t.name: f"{t.dtype}[{rows}, ...]" for t in recipe.features}
    seen = {key: f"{array.dtype}[{len(array)}, ...]" for key, array in features.items()}
    if seen != promised:
        raise RecipeError(f"{name} does not give the recipe's features", seen=seen, allowed=promised)
    return features


def _write_part(uri: str, split: str, first_row: int, table: pa.Table, shapes: Mapping[str, Any]) -> dict[str, Any]:
    name = f"{split}/{first_row:012d}.parquet"
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    target = table.column_names[-1]
    return {
        "name": name,
        "split": split,
        "rows": table.num_rows,
        "entry": storage.write_file(uri, name, sink.getvalue().to_pybytes()),
        "tensors": {**shapes, target: _target_tensor(table[target].type)},
        "classes": _count_classes(table[target]),
    }


def _to_column(array: npt.NDArray[Any]) -> pa.Array:
    if array.ndim == 1:
        return pa.array(array)
    return pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array[0].size)


def _target_tensor(kind: pa.DataType) -> tuple[str, tuple[int, ...]]:
    """Datatype and shape without the batch axis."""
    element, shape = (kind.value_type, (kind.list_size,)) if pa.types.is_fixed_size_list(kind) else (kind, ())
    if pa.types.is_string(element) or pa.types.is_binary(element):
        return "BYTES", shape
    return next(name for name, dtype in DATATYPES.items() if dtype == element.to_pandas_dtype()), shape


def _count_classes(target: pa.ChunkedArray) -> dict[str, int] | None:
    """Rows of each class, or None for a target that is no label."""
    if not (pa.types.is_integer(target.type) or pa.types.is_string(target.type) or pa.types.is_boolean(target.type)):
        return None
    counts = pc.value_counts(target).to_pylist()
    return {str(count["values"]): count["counts"] for count in counts} if len(counts) <= MOST_CLASSES else None


def _sum_classes(parts: Sequence[Mapping[str, Any]]) -> dict[str, int] | None:
    total: Counter[str] = Counter()
    for part in parts:
        if part["classes"] is None:
            return None
        total.update(part["classes"])
    return dict(sorted(total.items())) if len(total) <= MOST_CLASSES else None


def _common_tensors(parts: Sequence[Mapping[str, Any]], recipe: Recipe) -> Any:
    """What all parts say about their tensors; they must agree, or whole arrays can't be made of them."""
    first: Any = parts[0]["tensors"]
    for part in parts:
        if part["tensors"] != first:
            raise RecipeError(f"{recipe.preprocessing.__name__}.apply gives tensors of different shapes",
                              seen=part["tensors"], allowed=first, remedy="pad or cut them to one shape")  # fmt: skip
    return first


@contextlib.contextmanager
def _told_as_recipe_error(function: str) -> Iterator[None]:
    try:
        yield
    except TidepoolError:
        raise
    except Exception as error:
        raise RecipeError(f"{function} failed", seen=f"{type(error).__name__}: {error}") from error
