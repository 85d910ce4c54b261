"""From files to sealed, reproducible rows; and what happens when something is in the way."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from pyarrow import csv, parquet

from plants import SPEC, plants, spec_of, table, write_csv
from tidepool.data.preprocess import PreparedData, held_out, open_prepared, prepare
from tidepool.errors import CorruptionError, StorageError
from tidepool.recipes.digits import Digits
from tidepool.spec import DataSpec
from waiting import wait_until

pytestmark = pytest.mark.usefixtures("ray_cluster")


def same(left: PreparedData, right: PreparedData) -> bool:
    """Whether two prepared folders hold the same rows in the same order."""
    halves = [(data.load("train"), data.load("test"), data.raw()) for data in (left, right)]
    return all(
        a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a)
        for a, b in zip(*halves, strict=True)
    )


def test_digits_are_read_split_scaled_and_whole(tmp_path: Path) -> None:
    told: list[tuple[Any, ...]] = []
    data = prepare(SPEC, Digits(), str(tmp_path), lambda *news: told.append(news))
    assert data.uri == f"{tmp_path}/digits/{data.digest[:16]}"
    train, test, raw = data.load("train"), data.load("test"), data.raw()
    assert {name: (array.dtype, array.shape) for name, array in train.items()} == {
        "pixels": (np.float32, (data.rows["train"], 64)),
        "label": (np.int64, (data.rows["train"],)),
    }
    assert sum(data.rows.values()) == 1797
    assert 0.17 < data.rows["test"] / 1797 < 0.23
    assert train["pixels"].max() == 1.0
    assert np.array_equal(raw["image"] / np.float32(16), test["pixels"])
    assert np.array_equal(raw["label"], test["label"])
    assert data.preprocessing_state == {"largest": 16.0}
    assert {step for step, *_ in told} == {"read", "check", "fit", "write", "prepare"}
    assert told[-1][0] == "prepare"


def test_rows_keep_the_order_of_the_source(tmp_path: Path) -> None:
    source = Digits().builtin("digits")
    data = prepare(SPEC, Digits(), str(tmp_path))
    mask = held_out(np.arange(1797), SPEC.data)
    assert np.array_equal(data.load("train")["label"], source["label"].to_numpy()[~mask])
    assert np.array_equal(data.raw(20)["label"], source["label"].to_numpy()[mask][:20])


def test_the_manifest_tells_rows_classes_and_preprocessing(tmp_path: Path) -> None:
    data = prepare(SPEC, Digits(), str(tmp_path))
    manifest = json.loads((Path(data.uri) / "manifest.json").read_text())
    assert manifest["rows"] == data.rows
    assert {split: sum(classes.values()) for split, classes in manifest["classes"].items()} == data.rows
    assert list(manifest["classes"]["test"]) == [str(digit) for digit in range(10)]
    assert manifest["preprocessing"] == {"largest": 16.0}


def test_the_same_rows_in_other_blocks_and_formats_are_prepared_alike(tmp_path: Path) -> None:
    rows = table(60_000)
    rows = rows.set_column(1, "leaf", pa.array([f"{n:0200}" for n in range(60_000)]))
    many = tmp_path / "many"
    many.mkdir()
    for i in range(0, 60_000, 25_000):
        parquet.write_table(rows.slice(i, 25_000), many / f"{i:06}.parquet", row_group_size=9000)
    lines = tmp_path / "plants.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows.to_pylist()))
    first, second, third = (
        prepare(spec_of(source), plants(), str(tmp_path / "root"))
        for source in (write_csv(tmp_path / "one", rows), many, lines)
    )
    layouts = {tuple(path.name for path in sorted(Path(data.uri).glob("train/*"))) for data in (first, second, third)}
    assert len(layouts) == 3
    assert max(map(len, layouts)) > 1
    assert same(first, second)
    assert same(first, third)
    assert first.load("train")["both"].shape == (first.rows["train"], 2)
    assert isinstance(first.raw(1)["leaf"][0], bytes)


def test_what_is_prepared_is_used_again_and_says_so(tmp_path: Path) -> None:
    notes: list[str] = []
    first = prepare(SPEC, Digits(), str(tmp_path))
    second = prepare(SPEC, Digits(), str(tmp_path), lambda step, done, total, note="": notes.append(note))
    assert first == second == open_prepared(first.uri)
    assert notes == [f"reused {first.uri}"]


def test_another_split_recipe_or_content_is_prepared_apart(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "in", table(50))
    root = str(tmp_path / "root")
    first = prepare(spec_of(source), plants(), root)
    other_seed = prepare(spec_of(source, seed=1), plants(), root)
    other_params = prepare(spec_of(source).model_copy(update={"params": {"x": 1}}), plants(), root)
    csv.write_csv(table(51), Path(source) / "plants.csv")
    other_rows = prepare(spec_of(source), plants(), root)
    assert len({data.uri for data in (first, other_seed, other_params, other_rows)}) == 4
    assert not np.array_equal(first.raw()["height"], other_seed.raw()["height"])


def test_a_bucket_works_like_a_disk(tmp_path: Path) -> None:
    source = f"fsspec+file://{write_csv(tmp_path / 'in', table(200))}"
    far = prepare(spec_of(source), plants(), f"fsspec+file://{tmp_path}/bucket")
    near = prepare(spec_of(tmp_path / "in"), plants(), str(tmp_path / "root"))
    assert far.uri.startswith("fsspec+file://")
    assert same(far, near)
    assert prepare(spec_of(source), plants(), f"fsspec+file://{tmp_path}/bucket") == far


def test_two_that_prepare_the_same_at_once_do_no_harm(tmp_path: Path) -> None:
    task = ray.remote(num_cpus=0)(prepare)
    first, second = ray.get([task.remote(SPEC, Digits(), str(tmp_path)) for _ in range(2)])
    assert first == second == open_prepared(first.uri)


def test_half_a_preparation_does_not_count_and_the_next_one_finishes_it(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for i in range(3):
        parquet.write_table(table().slice(100 * i, 100), source / f"{i}.parquet")

    def break_off(batch: dict[str, Any]) -> dict[str, Any]:
        raise StorageError("can't write there", seen="No space left on device")

    with pytest.raises(StorageError, match="No space left"):
        prepare(spec_of(source), plants(break_off), str(tmp_path / "root"))
    (place,) = (tmp_path / "root" / "plants").glob("*") if (tmp_path / "root").exists() else [tmp_path / "none"]
    assert not (place / "manifest.json").exists()
    whole = prepare(spec_of(source), plants(), str(tmp_path / "root"))
    (Path(whole.uri) / "manifest.json").unlink()  # what a run leaves that is killed just before its end
    with pytest.raises(StorageError):
        open_prepared(whole.uri)
    assert prepare(spec_of(source), plants(), str(tmp_path / "root")) == whole
    assert open_prepared(whole.uri) == whole


def test_a_run_that_is_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    def slow_apply(batch: dict[str, Any]) -> dict[str, Any]:
        if len(batch["height"]) < 500:  # the held-out rows: those of "train" are written by then
            time.sleep(30)
        return {"both": np.zeros((len(batch["height"]), 2), np.float32)}

    class Runner:
        def run(self) -> None:
            prepare(spec, recipe, str(tmp_path / "root"))

    spec, recipe = spec_of(write_csv(tmp_path / "in", table())), plants(slow_apply)
    runner = ray.remote(num_cpus=0)(Runner).remote()
    run = runner.run.remote()

    def written() -> bool:
        ray.get(ray.wait([run], timeout=0)[0])  # if it failed, say so
        return bool(list(tmp_path.glob("root/plants/*/train/*.parquet")))

    wait_until(written, 240)
    ray.kill(runner)
    assert not list(tmp_path.glob("root/plants/*/manifest.json"))
    assert prepare(spec, plants(), str(tmp_path / "root")).rows["train"] > 500


def test_damage_is_refused_by_readers_and_mended_by_preparing_again(tmp_path: Path) -> None:
    data = prepare(SPEC, Digits(), str(tmp_path))
    victim = next(Path(data.uri).glob("train/*.parquet"))
    content = bytearray(victim.read_bytes())
    content[50] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CorruptionError, match="not the file that was written"):
        data.load("train")
    notes: list[str] = []
    prepare(SPEC, Digits(), str(tmp_path), lambda step, done, total, note="": notes.append(note))
    assert "is not whole and is made anew" in notes[0]
    assert data.load("train")["pixels"].shape[1] == 64


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("in the way")
    with pytest.raises(StorageError, match="can't write"):
        prepare(SPEC, Digits(), str(tmp_path / "root"))


def test_the_split_depends_on_seed_and_row_alone() -> None:
    numbers = np.arange(100_000)
    data = DataSpec(source="x", test_fraction=0.25, seed=7)
    mask = held_out(numbers, data)
    assert abs(mask.mean() - 0.25) < 0.01
    assert np.array_equal(mask[5000:6000], held_out(numbers[5000:6000], data))
    assert not np.array_equal(mask, held_out(numbers, data.model_copy(update={"seed": 8})))
    fewer = held_out(numbers, data.model_copy(update={"test_fraction": 0.1}))
    assert not (fewer & ~mask).any()
