"""MapReduce on Ray tasks, its kernels on Arrow tables.

    source --map, combine--> rows --hash of the key--> one partition each --reduce--> rows --> one table

One map task per piece of the source (a byte range, some row groups, a block) maps, combines, and leaves one object
per partition in the object store. One reduce task per partition takes its object from every map task. Nothing but
these objects moves, at most two tasks per CPU are submitted at once, and no task waits for another while it holds a
CPU, so one CPU is enough.

Order of the result: partition after partition, within each the order that `reduce` gives to rows that arrive in the
source's order. How a source is cut, and into how many partitions, depends on the source alone; so the result is the
same on every cluster. Sort it where another order is wanted.

The idea is that of Dean and Ghemawat, "MapReduce: Simplified Data Processing on Large Clusters" (OSDI 2004).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidepool.errors import DataError, TidepoolError
from tidepool.telemetry.progress import Progress, quiet

if TYPE_CHECKING:
    import ray
    from ray.data import Dataset

    from tidepool.data.sources import Piece

    Source: TypeAlias = str | Path | Sequence[str | Path] | Sequence[Piece] | Sequence[pa.Table] | Dataset

Kernel = Callable[[pa.Table], pa.Table]
Hashes = npt.NDArray[np.uint64]

MOST_PARTITIONS = 64


class Kernels(NamedTuple):
    """What the tasks run on tables."""

    map: Kernel
    combine: Kernel | None
    reduce: Kernel


def map_reduce(
    source: Source,
    map: Kernel,
    reduce: Kernel,
    combine: Kernel | None = None,
    partitions: int | None = None,
    progress: Progress = quiet,
) -> pa.Table:
    """Map every piece of `source`, bring rows of equal keys together, reduce them.

    Args:
        source: path(s) or URI(s) as in `sources.files`, pieces of them, a Ray Dataset, or tables.
        map: table to table, once for each table of a piece. The first column of the result is the key: text,
            bytes, booleans, numbers, dates or times; null is a key like others.
        reduce: table to table; sees all rows of its keys at once, keys of one partition together.
        combine: table to table, run on a map task's rows before they move; must leave key and columns as they are.
        partitions: number of reduce tasks; chosen from the number of pieces if None.

    Raises:
        DataError: the source has no rows, or a function failed: names it, its exception and where it was raised.
    """
    import ray

    from tidepool.data.tasks import cpus_per_task, run_bounded

    blocks = _blocks(source)
    number = partitions or default_partitions(len(blocks))
    cpus = cpus_per_task()
    map_task = ray.remote(num_cpus=cpus, num_returns=number + 1)(_map_block)
    reduce_task = ray.remote(num_cpus=cpus)(_reduce_partition)
    kernels = ray.put(Kernels(map, combine, reduce))

    mapped = run_bounded(lambda block: map_task.remote(kernels, number, block), blocks, "map", progress)
    mapped = [(rows, parts) for rows, parts in mapped if rows is not None]
    if not mapped:
        raise DataError("there is nothing to reduce", seen="no rows", allowed="a source with at least one row")
    groups = [[parts[p] for rows, parts in mapped if rows[p]] for p in range(number)]
    groups = [group for group in groups if group] or [[mapped[0][1][0]]]  # no rows at all: an empty table has columns
    reduced = run_bounded(lambda group: [reduce_task.remote(kernels, *group)], groups, "reduce", progress)
    return pa.concat_tables([table for table, _ in reduced], promote_options="default")


def default_partitions(pieces: int) -> int:
    """Reduce tasks for so many map tasks: grows with the root, as the number of objects is the product of both."""
    return 1 if pieces <= 1 else min(MOST_PARTITIONS, 2 * math.isqrt(pieces))


# A ready kernel


def sum_by_key(table: pa.Table) -> pa.Table:
    """Add up every column by the first one; names and order stay. Combines as well as it reduces."""
    key, *values = table.column_names
    sums = table.group_by(key, use_threads=False).aggregate([(name, "sum") for name in values])
    return sums.select([key, *(f"{name}_sum" for name in values)]).rename_columns(table.column_names)


# Partitioning


def split_by_key(table: pa.Table, partitions: int) -> list[pa.Table]:
    """The rows of each partition, in their order; a row's partition depends on its key (first column) alone."""
    if partitions == 1:
        return [table]
    table = table.combine_chunks()
    owners = (hash_keys(table[0]) % np.uint64(partitions)).astype(np.uint16)
    order = np.argsort(owners, kind="stable")  # a radix sort, since 16 bits are few
    ends = np.cumsum(np.bincount(owners, minlength=partitions))
    grouped = table.take(pa.array(order))
    return [grouped.slice(end - size, size) for end, size in zip(ends, np.diff(ends, prepend=0), strict=True)]


def hash_keys(keys: pa.ChunkedArray) -> Hashes:
    """A 64-bit hash of every key, the same in every process and on every machine; equal values have equal hashes.

    Raises:
        DataError: keys of a type that has no hash here.
    """
    kind = keys.type
    if pa.types.is_dictionary(kind):
        return hash_keys(keys.cast(kind.value_type))
    values = keys.combine_chunks()
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        hashes = _hash_bytes(*text_buffers(values))
    elif pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_large_binary(kind):
        return hash_keys(keys.cast(pa.binary() if pa.types.is_large_binary(kind) else pa.string()))
    elif pa.types.is_floating(kind):
        floats = values.cast(pa.float64()).fill_null(0).to_numpy(zero_copy_only=False) + 0.0  # -0.0 becomes 0.0
        floats[np.isnan(floats)] = np.nan  # one of the many NaN
        hashes = mix(floats.view(np.uint64))
    elif pa.types.is_integer(kind):
        hashes = mix(values.fill_null(0).to_numpy().astype(np.int64).view(np.uint64))
    elif pa.types.is_boolean(kind):
        return hash_keys(keys.cast(pa.int8()))
    elif pa.types.is_temporal(kind):
        return hash_keys(keys.cast(pa.int64() if kind.bit_width == 64 else pa.int32()))
    else:
        raise DataError("map returned keys that can't be hashed", seen=kind,
                        allowed="text, bytes, booleans, numbers, dates, times in the first column")  # fmt: skip
    hashes[values.is_null().to_numpy(zero_copy_only=False)] = 0
    return hashes


_PRIME = 0x9E3779B97F4A7C15
_STRETCH = 1 << 20
"""Bytes hashed at once: few enough to stay in the processor's cache."""


def _hash_bytes(data: npt.NDArray[np.uint8], offsets: npt.NDArray[np.int64]) -> Hashes:
    """A polynomial in `_PRIME` modulo 2**64 for each string, in a handful of numpy calls for all of them.

    With S[i] = the sum of (byte j + 1) * prime**j for j < i, the string from a to b has the polynomial
    (S[b] - S[a]) / prime**a, whatever stands before it. Division is exact: an odd number has an inverse.
    """
    hashes = np.empty(len(offsets) - 1, np.uint64)
    begin = 0
    while begin < len(hashes):
        end = max(begin + 1, int(np.searchsorted(offsets, offsets[begin] + _STRETCH, side="right")) - 1)
        spans = offsets[begin : end + 1] - offsets[begin]
        powers, inverses = _powers(max(_STRETCH, int(spans[-1])))
        sums = np.zeros(int(spans[-1]) + 1, np.uint64)
        stretch = data[offsets[begin] : offsets[end]].astype(np.uint64) + np.uint64(1)
        np.cumsum(stretch * powers[: len(stretch)], out=sums[1:])
        hashes[begin:end] = (sums[spans[1:]] - sums[spans[:-1]]) * inverses[spans[:-1]]
        begin = end
    return mix(hashes)


@functools.lru_cache(maxsize=1)
def _powers(length: int) -> tuple[Hashes, Hashes]:
    """prime**0 ... prime**length, and their inverses, modulo 2**64."""
    up, down = np.full(length + 1, _PRIME, np.uint64), np.full(length + 1, pow(_PRIME, -1, 1 << 64), np.uint64)
    up[0] = down[0] = 1
    return np.cumprod(up), np.cumprod(down)


def mix(bits: Hashes) -> Hashes:
    """One step of SplitMix64 (Steele, Lea, Flood 2014): every bit of the input reaches every bit of the output."""
    bits = bits + np.uint64(_PRIME)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def text_buffers(strings: pa.Array) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Bytes and offsets of a string or binary array, with neither copied but for the offsets' width."""
    _, offsets, data = strings.buffers()
    if offsets is None or not len(strings):
        return np.zeros(0, np.uint8), np.zeros(len(strings) + 1, np.int64)
    ends = np.frombuffer(offsets, np.int32)[strings.offset : strings.offset + len(strings) + 1].astype(np.int64)
    return np.frombuffer(data or b"", np.uint8), ends


# Tasks


def _blocks(source: Any) -> list[pa.Table | Piece | ray.ObjectRef]:
    """What the map tasks take: a piece of a file, or a table (its reference, so that it moves through the store)."""
    import ray
    from ray.data import Dataset

    from tidepool.data.sources import pieces
    from tidepool.data.tasks import silent_ray_data

    if isinstance(source, Dataset):
        with silent_ray_data():
            return list(source.to_arrow_refs())
    if isinstance(source, str | Path) or (source and isinstance(source[0], str | Path)):
        return list(pieces(source))
    return [ray.put(block) if isinstance(block, pa.Table) else block for block in source]


def _map_block(kernels: Kernels, partitions: int, block: pa.Table | Piece) -> list[Any]:
    """Rows of each partition (None if the block had none to map), then the partitions."""
    from tidepool.data.readers import read_parts
    from tidepool.data.tasks import raise_carried

    if isinstance(block, pa.Table):
        raise_carried(block)
    tables = [block] if isinstance(block, pa.Table) else read_parts(block, {})
    mapped = [_call("map", kernels.map, table) for table in tables if table.num_rows]
    if not mapped:
        return [None] * (partitions + 1)
    rows = _joined("map", mapped)
    if kernels.combine:
        rows = _call("combine", kernels.combine, rows)
    parts = split_by_key(rows, partitions)
    return [[part.num_rows for part in parts], *parts]


def _reduce_partition(kernels: Kernels, *parts: pa.Table) -> pa.Table:
    return _call("reduce", kernels.reduce, _joined("combine" if kernels.combine else "map", parts))


def _joined(producer: str, tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="default").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{producer} returned different columns for different blocks", seen=error) from None


def _call(role: str, function: Kernel, table: pa.Table) -> pa.Table:
    name = getattr(function, "__name__", type(function).__name__)
    try:
        result = function(table)
    except TidepoolError:
        raise
    except Exception as error:
        inner = error.__traceback__.tb_next if error.__traceback__ else None
        where = f" at {inner.tb_frame.f_code.co_filename}:{inner.tb_lineno}" if inner else ""
        raise DataError(f"the {role} function {name} failed", seen=f"{type(error).__name__}: {error}{where}") from error
    if not isinstance(result, pa.Table) or not result.num_columns:
        raise DataError(f"the {role} function {name} returned no table", seen=type(result).__name__,
                        allowed="a pyarrow.Table whose first column is the key")  # fmt: skip
    return result
