"""Do the rows keep what the recipe's columns promise? One pass over the blocks, one error that tells all.

`conform` is a pure function on one table: it converts each column to its declared type where nothing is lost, and
finds the rows that break a rule. `check` runs it on every block of a Ray Dataset and numbers the rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidepool.errors import DataError, RecipeError
from tidepool.recipe import ColumnCheck
from tidepool.telemetry.progress import Progress, quiet

if TYPE_CHECKING:
    from ray.data import Dataset

ROW = "__row__"
"""Column that `check` adds: the row's number in the source, from 0."""

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Finding:
    """Rows that break one rule: how many, the first of them, its value, and what is allowed."""

    column: str
    problem: str
    rows: int
    row: int
    value: Any
    allowed: str


def check(rows: Dataset, columns: Mapping[str, ColumnCheck], progress: Progress = quiet) -> Dataset:
    """The rows with exactly the declared columns, in their declared types, and the column `ROW`; held in memory.

    Raises:
        DataError: there are no rows, a file can't be read, or rows break a rule; names column, number of rows, the
            first of them and its value.
    """
    import ray

    from tidepool.data.tasks import cpus_per_task, run_bounded, silent_ray_data

    cpus = cpus_per_task()
    count = ray.remote(num_cpus=cpus)(_count)
    inspect = ray.remote(num_cpus=cpus, num_returns=2)(_conform_block)
    with silent_ray_data():
        blocks = rows.to_arrow_refs()
    counts = [rows for rows, _ in run_bounded(lambda block: [count.remote(block)], blocks, "count")]
    firsts = list(accumulate(counts, initial=0))
    progress("read", 1, 1, f"{firsts[-1]:,} rows")
    if not firsts[-1]:
        raise DataError("the source holds no rows", seen=0, allowed="at least one row")
    inspected = run_bounded(
        lambda block: inspect.remote(block[0], columns, block[1]),
        list(zip(blocks, firsts[:-1], strict=True)),
        "check",
        progress,
    )
    found = merge([finding for findings, _ in inspected for finding in findings])
    if found:
        raise refusal(found, firsts[-1])
    with silent_ray_data():
        return ray.data.from_arrow_refs([others[0] for _, others in inspected])


def conform(table: pa.Table, columns: Mapping[str, ColumnCheck], first_row: int = 0) -> tuple[pa.Table, list[Finding]]:
    """The declared columns of `table` in their declared types, and what is wrong with them.

    With findings the table comes back as it was. Conversions that are made: whole numbers between widths while they
    fit, whole numbers to floating point and back while exact, float64 to float32 (rounded), text to numbers, whole
    numbers to text, lists to fixed-size lists. `first_row` is the number of the table's first row.
    """
    converted: dict[str, pa.Array] = {}
    findings: list[Finding] = []
    for name, rule in columns.items():
        if name not in table.column_names:
            findings.append(Finding(name, "missing", table.num_rows, first_row, table.column_names, "this column"))
            continue
        original = _plain(table[name])
        converted[name], problems = _inspect(original, rule)
        findings += [
            Finding(name, problem, len(bad), first_row + int(bad[0]), original[int(bad[0])].as_py(), allowed)
            for problem, bad, allowed in problems
        ]
    return (table if findings else pa.table(converted)), findings


def merge(findings: Sequence[Finding]) -> list[Finding]:
    """One finding for each column and problem: rows added up, the earliest row as the example."""
    merged: dict[tuple[str, str], Finding] = {}
    for finding in sorted(findings, key=lambda finding: finding.row):
        key = (finding.column, finding.problem)
        first = merged.get(key)
        merged[key] = replace(first, rows=first.rows + finding.rows) if first else finding
    return list(merged.values())


def refusal(findings: Sequence[Finding], total: int) -> DataError:
    """The error that tells merged findings; the first in detail, the others in a clause each."""
    lines = [f"column {f.column}: {f.problem} in {f.rows:,} of {total:,} rows, first in row {f.row}" for f in findings]
    first = findings[0]
    seen = repr(first.value) if len(repr(first.value)) < 100 else repr(first.value)[:100] + "..."
    remedy = "correct the source, or the recipe's columns; rows count from 0"
    return DataError("; ".join(lines), seen=seen, allowed=first.allowed, remedy=remedy)


def arrow_type(dtype: str) -> pa.DataType:
    """The Arrow type of a `ColumnCheck.dtype`, e.g. "int64", or "float32[64]" for vectors of 64.

    Raises:
        RecipeError: no such type.
    """
    match = re.fullmatch(r"(\w+)(?:\[(\d+)\])?", dtype)
    try:
        element = pa.type_for_alias(match[1] if match else dtype)
    except ValueError:
        raise RecipeError(
            "a column has an unknown dtype", seen=dtype, allowed="e.g. float32, int64, string, float32[64]"
        ) from None
    return pa.list_(element, int(match[2])) if match and match[2] else element


def _count(block: pa.Table) -> int:
    from tidepool.data.tasks import raise_carried

    raise_carried(block)
    return int(block.num_rows)


def _conform_block(
    block: pa.Table, columns: Mapping[str, ColumnCheck], first_row: int
) -> tuple[list[Finding], pa.Table]:
    table, findings = conform(block, columns, first_row)
    numbers = np.arange(first_row, first_row + table.num_rows)
    return findings, table.append_column(ROW, pa.array(numbers)) if not findings else table.slice(0, 0)


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array without dictionaries, views and 64-bit offsets, which the kernels would each treat apart."""
    values = column.combine_chunks()
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_large_string(values.type) or pa.types.is_string_view(values.type):
        values = values.cast(pa.string())
    if pa.types.is_large_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    return values


def _inspect(values: pa.Array, rule: ColumnCheck) -> tuple[pa.Array, list[tuple[str, npt.NDArray[np.int64], str]]]:
    """The converted values without the bad rows; and per problem its rows and what is allowed.

    A row is reported for the first rule that it breaks: later rules look only at the rows that are left.
    """
    target = arrow_type(rule.dtype)
    problems: list[tuple[str, npt.NDArray[np.int64], str]] = []
    rows = np.arange(len(values))

    def refuse(bad: Mask, problem: str, allowed: str) -> None:
        nonlocal rows, values
        if bad.any():
            problems.append((problem, rows[bad], allowed))
            rows, values = rows[~bad], values.filter(pa.array(~bad))

    values = _blank_to_null(values, target)
    if not rule.nullable:
        refuse(_null(values), "null", "no nulls")
    if pa.types.is_fixed_size_list(target) and _is_list(values.type):
        refuse(_null(values), "null", "no nulls in vectors")
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        refuse(lengths != target.list_size, "wrong vector length", f"{target.list_size} elements")
    refuse(_lossy(values, target), "wrong type", f"{rule.dtype}, or what converts to it without loss")
    values = _converted(values, target)
    if not rule.nullable:
        refuse(_any(values, np.isnan), "NaN", "numbers")
    low, high = _bounds(rule)
    refuse(_any(values, lambda numbers: (numbers < low) | (numbers > high)), "out of range", f"{low:g} to {high:g}")
    return values, problems


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind))


def _blank_to_null(values: pa.Array, target: pa.DataType) -> pa.Array:
    """Text that is to become numbers: trimmed, and null where nothing is left."""
    if not pa.types.is_string(values.type) or pa.types.is_string(target):
        return values
    trimmed = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), trimmed)


def _null(values: pa.Array) -> Mask:
    """Rows that are null, or a list with a null in it."""
    bad: Mask = values.is_null().to_numpy(zero_copy_only=False)
    if _is_list(values.type) and values.flatten().null_count:
        owners = pc.list_parent_indices(values).to_numpy()
        bad[owners[values.flatten().is_null().to_numpy(zero_copy_only=False)]] = True
    return bad


def _lossy(values: pa.Array, target: pa.DataType) -> Mask:
    """Rows that do not convert to `target`: halves the array until each half converts or is one bad row."""
    try:
        _converted(values, target)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(values) == 1 or not _related(values.type, target):
            return np.ones(len(values), np.bool_)
        half = len(values) // 2
        return np.concatenate([_lossy(values[:half], target), _lossy(values[half:], target)])
    return np.zeros(len(values), np.bool_)


def _converted(values: pa.Array, target: pa.DataType) -> pa.Array:
    """`values` as `target`; raises ArrowInvalid where something would be lost."""
    if values.type == target:
        return values
    if not len(values):
        return pa.nulls(0, target)
    if pa.types.is_fixed_size_list(target) and _is_list(values.type):
        elements = _converted(values.flatten(), target.value_type)
        return pa.FixedSizeListArray.from_arrays(elements, target.list_size)
    if not _related(values.type, target):
        raise pa.ArrowInvalid(f"{values.type} is not {target}")
    result = values.cast(target)
    if pa.types.is_floating(values.type) and pa.types.is_floating(target) and values.type.bit_width > target.bit_width:
        overflow = pc.and_(pc.is_inf(result), pc.is_finite(values))
        if pc.any(overflow).as_py():
            raise pa.ArrowInvalid(f"too large for {target}")
    return result


def _related(kind: pa.DataType, target: pa.DataType) -> bool:
    """Whether some values of one type have an exact twin in the other."""
    if kind == target or pa.types.is_null(kind):
        return True
    if _is_list(kind) or _is_list(target):
        return _is_list(kind) and _is_list(target) and _related(kind.value_type, target.value_type)
    numeric = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if pa.types.is_integer(target) or pa.types.is_floating(target):
        return bool(numeric or pa.types.is_boolean(kind) or pa.types.is_string(kind))
    return bool(pa.types.is_string(kind) or (pa.types.is_integer(kind) and pa.types.is_string(target)))


def _any(values: pa.Array, bad: Any) -> Mask:
    """Rows with a number that is `bad`; for vectors one such element is enough. Other types have none."""
    element = values.type.value_type if _is_list(values.type) else values.type
    if not (pa.types.is_integer(element) or pa.types.is_floating(element)):
        return np.zeros(len(values), np.bool_)
    flat = values.flatten() if _is_list(values.type) else values
    mask = bad(flat.to_numpy(zero_copy_only=False)).reshape(len(values), -1 if len(values) else 1)
    return np.asarray(mask.any(axis=1))


def _bounds(rule: ColumnCheck) -> tuple[float, float]:
    return (-np.inf if rule.minimum is None else rule.minimum, np.inf if rule.maximum is None else rule.maximum)
