"""Files to rows: every format, every way of cutting, and every damage told with the file's name."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import csv, fs, parquet

from tidepool.data import sources
from tidepool.data.readers import ERROR, File, cut, format_of, read_parts
from tidepool.data.tasks import carries_errors, raise_carried
from tidepool.errors import DataError, RecipeError
from tidepool.recipe import ColumnCheck
from tidepool.recipes.digits import Digits

TABLE = pa.table({"id": ["007", "008", "009"], "x": [1.5, 2.5, 3.5]})
COLUMNS = {"id": ColumnCheck("string"), "x": ColumnCheck("float64")}


def rows(source: Path | str, columns: dict[str, ColumnCheck] = COLUMNS) -> list[dict[str, Any]]:
    """All rows of a source, read piece by piece without Ray."""
    return [
        row for piece in sources.pieces(source) for table in read_parts(piece, columns) for row in table.to_pylist()
    ]


def write_as(path: Path) -> Path:
    """`TABLE` in the format that the path's name stands for."""
    if path.suffix == ".parquet":
        parquet.write_table(TABLE, path, row_group_size=2)
    elif path.suffix == ".csv":
        csv.write_csv(TABLE, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))
    return path


@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl", "t.ndjson", "t.json"])
def test_tables_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    assert rows(write_as(tmp_path / name)) == TABLE.to_pylist()


def test_csv_columns_come_as_text_so_that_no_zero_is_lost(tmp_path: Path) -> None:
    assert rows(write_as(tmp_path / "t.csv"))[0] == {"id": "007", "x": "1.5"}


def test_csv_types_are_guessed_where_no_recipe_declares_them(tmp_path: Path) -> None:
    assert rows(write_as(tmp_path / "t.csv"), {})[0] == {"id": 7, "x": 1.5}


def test_json_strings_that_look_like_times_stay_strings(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"id": "2026-01-01", "x": 1}\n')
    assert rows(tmp_path / "t.jsonl") == [{"id": "2026-01-01", "x": 1}]


def test_undeclared_columns_are_not_read(tmp_path: Path) -> None:
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        assert rows(write_as(tmp_path / name), {"id": ColumnCheck("string")})[2] == {"id": "009"}


def test_all_columns_are_read_if_a_declared_one_is_missing_so_that_the_error_can_show_them(tmp_path: Path) -> None:
    for name in ("t.parquet", "t.csv", "t.jsonl"):
        found = rows(write_as(tmp_path / name), {"id": ColumnCheck("string"), "y": ColumnCheck("float64")})
        assert list(found[0]) == ["id", "x"]


def test_text_is_a_row_a_line_whatever_ends_it(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes("tide\r\n\npööl\nend".encode())
    assert rows(tmp_path / "t.txt") == [{"text": line} for line in ("tide", "", "pööl", "end")]


@pytest.mark.parametrize("name", ["t.txt.gz", "t.jsonl.gz", "t.csv.gz"])
def test_compressed_files_are_read_like_others(tmp_path: Path, name: str) -> None:
    plain = write_as(tmp_path / name.removesuffix(".gz"))
    expected = rows(plain)
    (tmp_path / name).write_bytes(gzip.compress(plain.read_bytes()))
    assert rows(tmp_path / name) == expected


@settings(deadline=None)
@given(
    text=st.lists(st.text(alphabet="ab é\n\r", max_size=30)).map("\n".join).filter(lambda text: text.strip("\r")),
    size=st.integers(1, 40),
)
def test_byte_ranges_give_every_line_once(tmp_path_factory: pytest.TempPathFactory, text: str, size: int) -> None:
    path = tmp_path_factory.mktemp("lines") / "t.txt"
    path.write_bytes(text.encode())
    whole = File(fs.LocalFileSystem(), str(path), path.stat().st_size, None)
    parts = cut(whole, "text", size)
    assert sum(part.length for part in parts) == whole.size
    lines = [line for part in parts for table in read_parts([part], {}) for line in table["text"].to_pylist()]
    expected = text.replace("\r\n", "\n").split("\n")
    assert lines == (expected[:-1] if text.endswith("\n") else expected)


def test_images_are_pixels_with_the_name_of_their_folder(tmp_path: Path) -> None:
    grey, colour = np.arange(6, dtype=np.uint8).reshape(2, 3), np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for label, pixels in (("cat", grey), ("dog", colour)):
        (tmp_path / label).mkdir()
        Image.fromarray(pixels).save(tmp_path / label / "1.png")
    first, second = rows(tmp_path, {})
    assert (first["image"], first["label"]) == (list(range(6)), "cat")
    assert (second["image"], second["label"]) == (list(range(12)), "dog")


def test_a_folder_is_read_in_the_order_of_its_paths_without_hidden_files(tmp_path: Path) -> None:
    for name in ("b/2.txt", "a.txt", "b/1.txt", "_SUCCESS", ".crc/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [row["text"] for row in rows(tmp_path)] == ["a.txt", "b/1.txt", "b/2.txt"]


def test_small_files_share_a_piece_and_large_ones_are_cut(tmp_path: Path) -> None:
    for i in range(50):
        (tmp_path / f"{i:02}.txt").write_text("small")
    assert len(sources.pieces(tmp_path)) == 1
    (tmp_path / "50.txt").write_bytes(b"x" * 99 + b"\n")
    with (tmp_path / "50.txt").open("ab") as file:
        file.truncate(20 << 20)
    assert [len(piece) for piece in sources.pieces(tmp_path)] == [51, 1, 1]


@pytest.mark.parametrize(
    ("path", "format"),
    [("a.PARQUET", "parquet"), ("a.csv.gz", "csv"), ("a.log", "text"), ("README", "text"), ("b.c/x.JPG", "image")],
)
def test_a_files_name_stands_for_its_format(path: str, format: str) -> None:
    assert format_of(path) == format


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.parquet", b"PAR1 not really", r"can't read .*t\.parquet as parquet"),
        ("t.csv", b"id,x\n1,2\n3\n", r"can't read .*t\.csv as csv. Seen: .*Expected 2 columns, got 1"),
        ("t.json", b'{"id": "1"}\n{"id": \n', r"can't read .*t\.json as json.*one JSON object a line"),
        ("t.txt", b"fine\n\xff\xfe\n", r"can't read .*t\.txt as text"),
        ("t.png", b"\x89PNG\r\n\x1a\nno more", r"can't read .*t\.png as image"),
        ("t.csv.gz", b"\x1f\x8bno more", r"can't read .*t\.csv\.gz as csv"),
        ("empty.csv", b"", r"empty\.csv is empty"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        rows(tmp_path)


def test_a_flipped_byte_in_a_parquet_page_is_found(tmp_path: Path) -> None:
    numbers = pa.table({"x": np.random.default_rng(0).random(10_000)})
    path = tmp_path / "t.parquet"
    parquet.write_table(numbers, path, compression="zstd", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    content[100:200] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"can't read .*t\.parquet"):
        rows(path)


def test_a_column_that_would_carry_an_error_is_refused(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"__error__": [b"anything"]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"t\.parquet has a column of a name that is tidepool's own"):
        rows(tmp_path / "t.parquet", {})


def test_an_error_is_carried_as_words_and_nothing_else_is_made_of_it() -> None:
    def refuse() -> Iterator[pa.Table]:
        yield TABLE
        raise DataError("no rows", seen=Path("a"), remedy="write some")

    *_, block = carries_errors(refuse)()
    with pytest.raises(DataError) as carried:
        raise_carried(block)
    assert str(carried.value) == "no rows. Seen: a. Remedy: write some."


@pytest.mark.parametrize(
    "forged", [pickle.dumps(KeyError()), b"{}", b"[]", b'{"kind": "annotations", "what": ""}', b'{"kind": 1}', None]
)
def test_what_no_task_has_carried_is_refused(forged: bytes | None) -> None:
    with pytest.raises(DataError, match="a column of a name that is tidepool's own"):
        raise_carried(pa.table({ERROR: pa.array([forged], pa.binary())}))


def test_a_missing_source_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"no such file or folder. Seen: .*nowhere.*{tmp_path}"):
        sources.pieces(tmp_path / "nowhere")


def test_an_empty_folder_and_a_parquet_file_without_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no files in"):
        sources.pieces(tmp_path)
    parquet.write_table(TABLE.slice(0, 0), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="holds no rows"):
        list(rows(tmp_path))


def test_mixed_formats_are_refused_by_name(tmp_path: Path) -> None:
    write_as(tmp_path / "a.csv")
    write_as(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match=r"mixes formats. Seen: csv \(a\.csv\), json \(b\.jsonl\)"):
        sources.pieces(tmp_path)


def test_an_unknown_store_is_refused() -> None:
    with pytest.raises(DataError, match="can't reach the source"):
        sources.pieces("nosuchstore://bucket/x")


def test_the_digest_follows_the_content_and_not_the_place(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        (folder / "a.txt").write_text("tide")
    digest = sources.digest(str(first), Digits())
    assert digest == sources.digest(str(second), Digits())
    (second / "a.txt").write_text("pool")
    assert digest != sources.digest(str(second), Digits())
    (first / "a.txt").rename(first / "b.txt")
    assert digest != sources.digest(str(first), Digits())


def test_the_digest_of_a_bucket_follows_names_sizes_and_times(tmp_path: Path) -> None:
    uri = f"fsspec+file://{tmp_path}"
    (tmp_path / "a.txt").write_text("tide")
    digest = sources.digest(uri, Digits())
    assert digest == sources.digest(uri, Digits())
    (tmp_path / "a.txt").write_text("tides")
    assert digest != sources.digest(uri, Digits())


def test_built_in_data_has_a_digest_and_unknown_built_in_data_has_an_error() -> None:
    assert sources.digest("builtin:digits", Digits()) == sources.digest("builtin:digits", Digits(hidden=8))
    with pytest.raises(RecipeError, match="no built-in data"):
        sources.digest("builtin:nothing", Digits())
