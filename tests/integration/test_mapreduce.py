"""`map_reduce` on a real cluster: exact, the same whatever the source looks like, and clear when a function fails."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import ray
from pyarrow import fs, parquet

from tidepool.data.mapreduce import map_reduce, sum_by_key
from tidepool.data.readers import File, cut
from tidepool.data.tasks import run_bounded
from tidepool.data.words import count_words
from tidepool.errors import DataError, StorageError

pytestmark = pytest.mark.usefixtures("ray_cluster")

ALPHABET = "aaaabbbccdé ß\t\u2003 "


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 2,000 lines of short words."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    draw = random.Random(0)
    path.write_text("\n".join("".join(draw.choices(ALPHABET, k=60)) for _ in range(2000)))
    return path


def counted(table: pa.Table) -> dict[str, int]:
    """Word to count; fails if a word is there twice."""
    assert table.column_names == ["word", "count"]
    words = table["word"].to_pylist()
    assert len(set(words)) == len(words)
    return dict(zip(words, table["count"].to_pylist(), strict=True))


def small_pieces(path: Path, size: int) -> list[tuple[Any, ...]]:
    """The file cut into pieces of about `size` bytes."""
    return [(part,) for part in cut(File(fs.LocalFileSystem(), str(path), path.stat().st_size, None), "text", size)]


@pytest.mark.parametrize("partitions", [None, 1, 7])
def test_words_are_counted_exactly(text: Path, partitions: int | None) -> None:
    pieces = small_pieces(text, 5000)
    assert len(pieces) > 20
    table = map_reduce(pieces, map=count_words, combine=sum_by_key, reduce=sum_by_key, partitions=partitions)
    assert counted(table) == Counter(text.read_text().split())


def test_every_kind_of_source_gives_the_same_result(text: Path, tmp_path: Path) -> None:
    lines = pa.table({"text": text.read_text().split("\n")})
    parquet.write_table(lines, tmp_path / "lines.parquet", row_group_size=300)
    half = tmp_path / "half.txt"
    half.write_text("\n".join(lines["text"].to_pylist()[:1000]))
    rest = tmp_path / "rest.txt"
    rest.write_text("\n".join(lines["text"].to_pylist()[1000:]))
    sources: list[Any] = [
        text,
        f"file://{text}",
        [half, str(rest)],
        [lines.slice(0, 1500), lines.slice(1500)],
        tmp_path / "lines.parquet",
        ray.data.from_arrow([lines.slice(i, 500) for i in range(0, 2000, 500)]),
        ray.data.from_pandas(lines.to_pandas()),
    ]
    expected = Counter(text.read_text().split())
    for source in sources:
        assert counted(map_reduce(source, map=count_words, reduce=sum_by_key)) == expected


def test_the_order_of_the_result_is_the_same_every_time(text: Path) -> None:
    first, second = (map_reduce(small_pieces(text, 9000), map=count_words, reduce=sum_by_key) for _ in range(2))
    assert first.equals(second)


def test_reduce_sees_all_rows_of_its_keys_in_the_order_of_the_source() -> None:
    tables = [pa.table({"key": [i % 3 for i in range(10)], "row": range(10 * t, 10 * t + 10)}) for t in range(5)]

    def rows_of_each_key(table: pa.Table) -> pa.Table:
        return table.group_by("key", use_threads=False).aggregate([("row", "list")])

    result = map_reduce(tables, map=lambda table: table, reduce=rows_of_each_key, partitions=2)
    lists = dict(zip(result["key"].to_pylist(), result["row_list"].to_pylist(), strict=True))
    assert lists == {key: [row for row in range(50) if row % 10 % 3 == key] for key in range(3)}


def test_combine_runs_before_rows_move() -> None:
    tables = [pa.table({"key": ["a", "b"] * 100, "n": [1] * 200})] * 3

    def reduce(table: pa.Table) -> pa.Table:
        return sum_by_key(table.append_column("rows", pa.array([1] * table.num_rows)))

    result = map_reduce(tables, map=lambda table: table, combine=sum_by_key, reduce=reduce)
    assert sorted(zip(*result.to_pydict().values(), strict=True)) == [("a", 300, 3), ("b", 300, 3)]


def test_null_is_a_key_like_others() -> None:
    table = pa.table({"key": ["a", None, "a", None], "n": [1, 2, 3, 4]})
    result = map_reduce([table, table], map=lambda table: table, reduce=sum_by_key, partitions=3)
    assert counted(result.rename_columns(["word", "count"])) == {"a": 8, None: 12}


def test_text_without_a_word_gives_a_table_without_rows(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n \t\n")
    result = map_reduce(tmp_path / "blank.txt", map=count_words, reduce=sum_by_key)
    assert (result.column_names, result.num_rows) == (["word", "count"], 0)


def test_a_source_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="nothing to reduce"):
        map_reduce([pa.table({"text": pa.array([], pa.string())})], map=count_words, reduce=sum_by_key)


def test_one_free_cpu_is_enough(text: Path) -> None:
    class Holder:
        def ready(self) -> bool:
            return True

    cpus = int(ray.cluster_resources()["CPU"])
    holder = ray.remote(num_cpus=cpus - 1)(Holder).remote()
    try:
        assert ray.get(holder.ready.remote())
        rows = ray.data.from_arrow(pa.table({"text": text.read_text().split("\n")})).repartition(5)
        for source in (small_pieces(text, 5000), rows):
            assert map_reduce(source, map=count_words, reduce=sum_by_key, partitions=4).num_rows > 0
    finally:
        ray.kill(holder)


def test_a_task_may_call_it_in_turn(text: Path) -> None:
    def inside(path: str) -> int:
        return int(pc.sum(map_reduce(path, map=count_words, reduce=sum_by_key)["count"]).as_py())

    assert ray.get(ray.remote(inside).remote(str(text))) == len(text.read_text().split())


def test_few_tasks_are_submitted_at_once() -> None:
    launched, ahead = [], []

    def launch(item: int) -> list[ray.ObjectRef]:
        launched.append(item)
        return [ray.remote(lambda: item).remote()]

    results = run_bounded(launch, range(60), "test", lambda step, done, *rest: ahead.append(len(launched) - done))
    assert [value for value, _ in results] == list(range(60))
    assert max(ahead) <= 2 * ray.cluster_resources()["CPU"]


def test_a_failing_map_function_is_named_with_its_exception_and_line(text: Path) -> None:
    def divide(table: pa.Table) -> pa.Table:
        return table.slice(0, 1 // 0)

    with pytest.raises(
        DataError, match=r"the map function divide failed. Seen: ZeroDivisionError: .*test_mapreduce"
    ) as e:
        map_reduce(small_pieces(text, 5000), map=divide, reduce=sum_by_key)
    assert f".py:{divide.__code__.co_firstlineno + 1}" in str(e.value)


def test_a_failing_reduce_function_is_named(text: Path) -> None:
    def lose(table: pa.Table) -> pa.Table:
        return table.select(["nowhere"])

    with pytest.raises(DataError, match=r"the reduce function lose failed. Seen: KeyError"):
        map_reduce(text, map=count_words, reduce=lose)


def test_what_a_function_raises_of_ours_stays_as_it_is(text: Path) -> None:
    def fill(table: pa.Table) -> pa.Table:
        raise StorageError("the disk is full", seen=table.num_rows)

    with pytest.raises(StorageError, match="the disk is full"):
        map_reduce(text, map=fill, reduce=sum_by_key)


def test_a_map_function_that_returns_no_table_is_refused(text: Path) -> None:
    with pytest.raises(DataError, match=r"returned no table. Seen: dict. Allowed: a pyarrow.Table"):
        map_reduce(text, map=lambda table: table.to_pydict(), reduce=sum_by_key)


def test_blocks_with_different_columns_are_refused() -> None:
    tables = [pa.table({"key": [1], "n": [1]}), pa.table({"key": [1], "n": ["one"]})]
    with pytest.raises(DataError, match="map returned different columns for different blocks"):
        map_reduce(tables, map=lambda table: table, reduce=sum_by_key, partitions=1)


def test_a_damaged_file_is_named(text: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.txt"
    damaged.write_bytes(text.read_bytes()[:500] + b"\xff\n")
    with pytest.raises(DataError, match=r"can't read .*damaged\.txt as text"):
        map_reduce([text, damaged], map=count_words, reduce=sum_by_key)


def test_a_worker_that_dies_for_good_is_told() -> None:
    def crash(table: pa.Table) -> pa.Table:
        import os

        os._exit(table.num_rows)

    with pytest.raises(DataError, match="a worker process ended before its task did"):
        map_reduce([pa.table({"key": [1]})], map=crash, reduce=sum_by_key)
