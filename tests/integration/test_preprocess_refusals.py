"""What preparing refuses: rows that break a rule, damaged files, preprocessing that breaks its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from plants import SPEC, plants, spec_of, table, write_csv
from tidepool.data.preprocess import prepare
from tidepool.errors import DataError, RecipeError
from tidepool.recipe import ColumnCheck, Signature, TensorSpec
from tidepool.recipes.digits import Digits

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("kind", [0, 1, 7, 8], r"column kind: out of range in 2 of 4 rows, first in row 2. Seen: '7'. Allowed: 0 to 2"),
        ("kind", [0, "one", 1, 2], r"column kind: wrong type in 1 of 4 rows, first in row 1. Seen: 'one'"),
        ("kind", [0, None, 1, 2], r"column kind: null in 1 of 4 rows, first in row 1"),
        ("height", [0, 1, 2, "nan"], r"column height: NaN in 1 of 4 rows, first in row 3"),
        ("width", [1, 2, 3, 4], r"column height: missing in 4 of 4 rows.*Seen: \['width', 'leaf', 'kind'\]"),
    ],
)
def test_rows_that_break_a_rule_are_told(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    columns = {"height": [1, 2, 3, 4], "leaf": ["a"] * 4, "kind": [0, 1, 2, 0]}
    if column not in columns:
        columns = {column if name == "height" else name: each for name, each in columns.items()}
    columns[column] = ["" if value is None else value for value in values]
    lines = [",".join(columns), *(",".join(map(str, row)) for row in zip(*columns.values(), strict=True))]
    (tmp_path / "plants.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        prepare(spec_of(tmp_path / "plants.csv"), plants(), str(tmp_path / "root"))
    assert not (tmp_path / "root").exists()


def test_rows_are_numbered_through_all_files(tmp_path: Path) -> None:
    for i in range(3):
        parquet.write_table(table(400), tmp_path / f"{i}.parquet", row_group_size=100)
    bad = table(400).set_column(2, "kind", pa.array([0] * 399 + [5]))
    parquet.write_table(bad, tmp_path / "3.parquet")
    with pytest.raises(DataError, match="out of range in 1 of 1,600 rows, first in row 1599"):
        prepare(spec_of(tmp_path), plants(), str(tmp_path / "root"))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in", table(50))
    (tmp_path / "in" / "second.csv").write_text("height,leaf,kind\n1,2\n")
    with pytest.raises(DataError, match=r"can't read .*second\.csv as csv.*Expected 3 columns, got 2"):
        prepare(spec_of(source), plants(), str(tmp_path / "root"))


def test_a_source_too_small_to_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a split has no rows. Seen: \{'train': \d, 'test': \d\}"):
        prepare(spec_of(write_csv(tmp_path / "in", table(1))), plants(), str(tmp_path / "root"))


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda batch: {"both": batch["height"] / batch["nowhere"]}, "apply failed. Seen: KeyError: 'nowhere'"),
        (lambda batch: {"one": batch["height"]}, r"does not give the recipe's features. Seen: \{'one'"),
        (lambda batch: {"both": batch["height"].astype(np.float64)}, "does not give .*float64"),
        (lambda batch: {"both": batch["height"][:3]}, r"does not give .*float32\[3, ...\]"),
        (
            lambda batch: {"both": np.zeros((len(batch["height"]), len(batch["height"])), np.float32)},
            "of different shapes",
        ),
    ],
)
def test_a_preprocessing_that_breaks_its_contract_is_named(tmp_path: Path, apply: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        prepare(spec_of(write_csv(tmp_path / "in", table(40))), plants(apply), str(tmp_path / "root"))


def test_a_feature_of_the_targets_name_is_refused(tmp_path: Path) -> None:
    class Clash(Digits):
        features = (TensorSpec("label", "FP32", (-1, 64)),)

    with pytest.raises(RecipeError, match=r"target and feature have one name\. Seen: label"):
        prepare(SPEC, Clash(), str(tmp_path))


def test_an_input_without_a_check_is_refused(tmp_path: Path) -> None:
    class Unchecked(Digits):
        columns = {"label": ColumnCheck("int64")}  # noqa: RUF012

    with pytest.raises(RecipeError, match=r"inputs and target need a check each\. Seen: none for image"):
        prepare(SPEC, Unchecked(), str(tmp_path))


def test_a_column_that_does_not_fit_its_tensor_is_named(tmp_path: Path) -> None:
    class Wider(Digits):
        signature = Signature(inputs=(TensorSpec("image", "FP32", (-1, 65)),), outputs=Digits.signature.outputs)

    with pytest.raises(RecipeError, match=r"column image does not fit its tensor.*Allowed: FP32 of shape \[-1, 65\]"):
        prepare(SPEC, Wider(), str(tmp_path))


def test_a_split_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    data = prepare(spec_of(write_csv(tmp_path / "in", table(40))), plants(), str(tmp_path / "root"))
    with pytest.raises(DataError, match=r"no such split. Seen: validation. Allowed: train, test"):
        data.load("validation")
