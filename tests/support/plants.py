"""A small model of made-up plants, for tests of the way from files to prepared rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

from tidepool.recipe import ColumnCheck, Recipe, Signature, TensorSpec
from tidepool.recipes.digits import Digits
from tidepool.spec import DataSpec, Spec

SPEC = Spec(name="digits", recipe="tidepool.recipes.digits:Digits", data=DataSpec(source="builtin:digits"))


def spec_of(source: Path | str, **data: Any) -> Spec:
    """The spec of a model whose rows are at `source`."""
    return SPEC.model_copy(update={"name": "plants", "data": DataSpec(source=str(source), **data)})


def plants(apply: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> Recipe:
    """A recipe on two columns and a text label; `apply` replaces what its preprocessing does."""
    from dataclasses import dataclass
    from typing import Self

    from tidepool.data.mapreduce import sum_by_key
    from tidepool.recipe import MapReduce, Preprocessing

    @dataclass(frozen=True)
    class Centring(Preprocessing):
        mean: float

        @classmethod
        def fit(cls, map_reduce: MapReduce) -> Self:
            def heights(rows: pa.Table) -> pa.Table:
                assert rows.column_names == ["height", "leaf", "kind"]
                return pa.table({"key": ["height"] * len(rows), "sum": rows["height"], "rows": [1] * len(rows)})

            total = map_reduce(map=heights, combine=sum_by_key, reduce=sum_by_key)
            return cls(total["sum"][0].as_py() / total["rows"][0].as_py())

        def apply(self, batch: Any) -> dict[str, Any]:
            if apply:
                return apply(batch)
            long = np.array([len(text) for text in batch["leaf"]], np.float32)
            return {"both": np.stack([batch["height"] - np.float32(self.mean), long], axis=1)}

    class Plants(Digits):
        signature = Signature(
            inputs=(TensorSpec("height", "FP32", (-1,)), TensorSpec("leaf", "BYTES", (-1,))),
            outputs=Digits.signature.outputs,
        )
        columns = {  # noqa: RUF012
            "height": ColumnCheck("float32", 0, 10),
            "leaf": ColumnCheck("string"),
            "kind": ColumnCheck("int64", 0, 2),
        }
        target = "kind"
        preprocessing = Centring
        features = (TensorSpec("both", "FP32", (-1, 2)),)

    return Plants()


def table(rows: int = 1000) -> pa.Table:
    """Made-up plants."""
    draw = np.random.default_rng(0)
    return pa.table(
        {
            "height": draw.integers(0, 1000, rows) / 128,
            "leaf": ["é" * n for n in draw.integers(0, 9, rows)],
            "kind": draw.integers(0, 3, rows),
        }
    )


def write_csv(folder: Path, rows: pa.Table) -> str:
    """`rows` as a CSV file in a folder; the folder."""
    folder.mkdir()
    csv.write_csv(rows, folder / "plants.csv")
    return str(folder)
