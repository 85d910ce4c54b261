"""What `conform` converts, what it refuses, and how the refusal reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tidepool.data.checks import Finding, arrow_type, conform, merge, refusal
from tidepool.errors import RecipeError
from tidepool.recipe import ColumnCheck


def inspect(values: Any, check: ColumnCheck, first_row: int = 0) -> tuple[list[Any] | None, list[Finding]]:
    """The converted values of one column (None if refused), and the findings."""
    table, findings = conform(pa.table({"x": values}), {"x": check}, first_row)
    return (None if findings else table["x"].to_pylist()), findings


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        (pa.array([1, 2], pa.int8()), "int64", [1, 2]),
        (pa.array([1, 2], pa.int64()), "int8", [1, 2]),
        (pa.array([1, 2], pa.int64()), "float32", [1.0, 2.0]),
        (pa.array([1.0, 2.0]), "int64", [1, 2]),
        (pa.array([0.5, 2.0], pa.float64()), "float32", [0.5, 2.0]),
        (pa.array(["1", " 2 "]), "int64", [1, 2]),
        (pa.array(["0.5", "nan"]).slice(0, 1), "float64", [0.5]),
        (pa.array([True, False]), "int64", [1, 0]),
        (pa.array([7, 8]), "string", ["7", "8"]),
        (pa.array(["a", ""]), "string", ["a", ""]),
        (pa.array(["a", "b"], pa.large_string()), "string", ["a", "b"]),
        (pa.array(["a", "b"]).dictionary_encode(), "string", ["a", "b"]),
        (pa.array([[1, 2], [3, 4]]), "float32[2]", [[1.0, 2.0], [3.0, 4.0]]),
        (pa.array([[1, 2], [3, 4]], pa.large_list(pa.int8())), "int64[2]", [[1, 2], [3, 4]]),
        (pa.array([[1, 2], [3, 4], [5, 6]], pa.list_(pa.int64(), 2)).slice(1), "int64[2]", [[3, 4], [5, 6]]),
    ],
)
def test_what_loses_nothing_is_converted(values: pa.Array, dtype: str, expected: list[Any]) -> None:
    converted, findings = inspect(values, ColumnCheck(dtype))
    assert (converted, findings) == (expected, [])


@pytest.mark.parametrize(
    ("values", "dtype", "rows"),
    [
        (pa.array([1, 300, 2]), "int8", [1]),
        (pa.array([1.0, 1.5, 2.0, 2.5]), "int64", [1, 3]),
        (pa.array([1, 2**53 + 1]), "float64", [1]),
        (pa.array([1.0, 1e300]), "float32", [1]),
        (pa.array(["1", "two", "3", "four"]), "int64", [1, 3]),
        (pa.array([1.5, 2.5]), "string", [0, 1]),
        (pa.array(["x", "y"]), "float32[2]", [0, 1]),
        (pa.array([[1, 2], [3, 4]]), "int64", [0, 1]),
        (pa.array([["1", "2"], ["3", "four"]]), "int64[2]", [1]),
    ],
)
def test_what_would_lose_something_is_refused_row_by_row(values: pa.Array, dtype: str, rows: list[int]) -> None:
    _, (finding,) = inspect(values, ColumnCheck(dtype), first_row=100)
    assert (finding.problem, finding.rows, finding.row) == ("wrong type", len(rows), 100 + rows[0])
    assert finding.value == values[rows[0]].as_py()


@pytest.mark.parametrize(
    ("values", "check", "problem", "row", "allowed"),
    [
        ([3, 12, 11], ColumnCheck("int64", 0, 9), "out of range", 1, "0 to 9"),
        ([3.0, -1.0], ColumnCheck("float32", minimum=0), "out of range", 1, "0 to inf"),
        ([3.0, float("inf")], ColumnCheck("float32", maximum=5), "out of range", 1, "-inf to 5"),
        ([1, None], ColumnCheck("int64"), "null", 1, "no nulls"),
        (["1", "  "], ColumnCheck("int64"), "null", 1, "no nulls"),
        ([1.0, float("nan")], ColumnCheck("float64"), "NaN", 1, "numbers"),
        ([[1, 2], [1]], ColumnCheck("int64[2]"), "wrong vector length", 1, "2 elements"),
        ([[1, 2], [1, None]], ColumnCheck("int64[2]"), "null", 1, "no nulls"),
        ([[1, 2], None], ColumnCheck("int64[2]"), "null", 1, "no nulls"),
        ([[0.0, 1.0], [0.5, 17.0]], ColumnCheck("float32[2]", 0, 16), "out of range", 1, "0 to 16"),
        ([[0.0, 1.0], [0.5, float("nan")]], ColumnCheck("float32[2]"), "NaN", 1, "numbers"),
    ],
)
def test_a_broken_rule_is_found_with_its_row_and_what_is_allowed(
    values: list[Any], check: ColumnCheck, problem: str, row: int, allowed: str
) -> None:
    _, (finding,) = inspect(pa.array(values), check)
    assert (finding.problem, finding.row, finding.allowed) == (problem, row, allowed)


def test_a_nullable_column_keeps_its_nulls_and_nan() -> None:
    converted, findings = inspect(pa.array([1, None, 3]), ColumnCheck("float64", 0, 5, nullable=True))
    assert (converted, findings) == ([1.0, None, 3.0], [])
    assert inspect(pa.array([1.0, float("nan")]), ColumnCheck("float64", 0, 5, nullable=True))[1] == []


def test_a_row_is_told_once_for_the_first_rule_it_breaks() -> None:
    _, findings = inspect(pa.array(["5", "x", None, "12", "nan"]), ColumnCheck("float64", 0, 9))
    assert [(f.problem, f.row) for f in findings] == [
        ("null", 2), ("wrong type", 1), ("NaN", 4), ("out of range", 3)]  # fmt: skip


def test_a_missing_column_is_told_with_the_columns_that_are_there() -> None:
    _, (finding,) = conform(pa.table({"y": [1, 2], "z": [1, 2]}), {"x": ColumnCheck("int64")})
    assert (finding.problem, finding.rows, finding.value) == ("missing", 2, ["y", "z"])


def test_undeclared_columns_are_left_out_and_the_declared_order_is_kept() -> None:
    table, _ = conform(pa.table({"a": [1], "b": [2], "c": [3]}), {"c": ColumnCheck("int64"), "a": ColumnCheck("int64")})
    assert table.column_names == ["c", "a"]


def test_an_empty_table_conforms() -> None:
    table, findings = conform(pa.table({"x": pa.array([], pa.string())}), {"x": ColumnCheck("float32[3]", 0, 1)})
    assert (table.num_rows, findings) == (0, [])


def test_findings_of_blocks_are_added_up_and_the_first_row_is_the_example() -> None:
    late, early = Finding("x", "null", 2, 50, None, "no nulls"), Finding("x", "null", 1, 7, None, "no nulls")
    other = Finding("y", "NaN", 1, 9, np.nan, "numbers")
    assert [(f.column, f.rows, f.row) for f in merge([late, other, early])] == [("x", 3, 7), ("y", 1, 9)]


def test_the_error_names_column_rows_example_and_what_is_allowed() -> None:
    error = refusal([Finding("label", "out of range", 3, 17, 12, "0 to 9"), Finding("x", "null", 1, 4, None, "")], 1797)
    assert str(error) == (
        "column label: out of range in 3 of 1,797 rows, first in row 17; column x: null in 1 of 1,797 rows, "
        "first in row 4. Seen: 12. Allowed: 0 to 9. "
        "Remedy: correct the source, or the recipe's columns; rows count from 0."
    )


@pytest.mark.parametrize("dtype", ["float99", "int64[", "[3]", "vector"])
def test_an_unknown_dtype_is_the_recipes_mistake(dtype: str) -> None:
    with pytest.raises(RecipeError, match="unknown dtype"):
        arrow_type(dtype)
