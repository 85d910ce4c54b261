"""Keys to partitions, and the kernels that come ready."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidepool.data.mapreduce import default_partitions, hash_keys, split_by_key, sum_by_key
from tidepool.errors import DataError

KEYS = st.one_of(
    st.lists(st.text() | st.none()).map(lambda keys: pa.array(keys, pa.string())),
    st.lists(st.binary() | st.none()).map(lambda keys: pa.array(keys, pa.binary())),
    st.lists(st.integers(-(2**63), 2**63 - 1) | st.none()).map(lambda keys: pa.array(keys, pa.int64())),
    st.lists(st.floats() | st.none()).map(lambda keys: pa.array(keys, pa.float64())),
    st.lists(st.booleans() | st.none()).map(lambda keys: pa.array(keys, pa.bool_())),
)


def hashes(keys: pa.Array | pa.ChunkedArray) -> list[int]:
    """The hash of every key."""
    return hash_keys(pa.chunked_array([keys]) if isinstance(keys, pa.Array) else keys).tolist()


@settings(deadline=None)
@given(keys=KEYS, cut=st.integers(0, 20))
def test_a_hash_depends_on_the_key_alone_not_on_where_it_stands(keys: pa.Array, cut: int) -> None:
    whole = hashes(keys)
    assert whole == [hashes(keys[i : i + 1])[0] for i in range(len(keys))]
    assert whole == hashes(pa.chunked_array([keys[:cut], keys[cut:]], keys.type))
    assert whole == hashes(pa.concat_arrays([keys[:cut], keys])[min(cut, len(keys)) :])


@settings(deadline=None)
@given(keys=KEYS, partitions=st.integers(1, 50))
def test_every_row_is_in_one_partition_and_equal_keys_are_together_in_their_order(
    keys: pa.Array, partitions: int
) -> None:
    table = pa.table({"key": keys, "row": np.arange(len(keys))})
    parts = split_by_key(table, partitions)
    assert len(parts) == partitions
    rows = [row for part in parts for row in part["row"].to_pylist()]
    assert sorted(rows) == list(range(len(keys)))
    for part in parts:
        assert part["row"].to_pylist() == sorted(part["row"].to_pylist())
        assert repr(part["key"].to_pylist()) == repr(keys.take(part["row"].combine_chunks()).to_pylist())
    owners = [set(map(repr, part["key"].to_pylist())) for part in parts]
    assert sum(map(len, owners)) == len(set().union(*owners))


@settings(deadline=None)
@given(words=st.lists(st.text(alphabet="ab\0", max_size=4), unique=True))
def test_different_short_words_have_different_hashes(words: list[str]) -> None:
    assert len(set(hashes(pa.array(words, pa.string())))) == len(words)


def test_hashes_are_the_same_in_another_process() -> None:
    script = (
        "import pyarrow as pa; from tidepool.data.mapreduce import hash_keys;"
        "print(hash_keys(pa.chunked_array([['tide', 'pool', '']])).tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True).stdout
    assert printed.strip() == str(hashes(pa.array(["tide", "pool", ""])))


def test_words_spread_evenly_over_partitions() -> None:
    words = pa.table({"key": [f"word-{i}" for i in range(20_000)]})
    sizes = [part.num_rows for part in split_by_key(words, 8)]
    assert max(sizes) < 1.1 * 20_000 / 8


def test_keys_longer_than_a_stretch_hash_like_short_ones() -> None:
    long = "x" * ((1 << 20) + 5)
    assert hashes(pa.array(["a", long, "b"])) == [hashes(pa.array([key]))[0] for key in ("a", long, "b")]


def test_zero_has_one_hash_and_so_has_nan() -> None:
    odd_nan = np.array([0x7FF8000000000001], np.uint64).view(np.float64)[0]
    assert len(set(hashes(pa.array([0.0, -0.0])))) == 1
    assert len(set(hashes(pa.array(np.array([np.nan, odd_nan, -np.nan]))))) == 1


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_text_hashes_alike_however_it_is_stored(kind: pa.DataType) -> None:
    assert hashes(pa.array(["tide", None, "pool"]).cast(kind)) == hashes(pa.array(["tide", None, "pool"]))


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint8(), pa.uint64()])
def test_whole_numbers_hash_alike_in_any_width(kind: pa.DataType) -> None:
    assert hashes(pa.array([0, 1, 100], kind)) == hashes(pa.array([0, 1, 100]))


@pytest.mark.parametrize("keys", [[date(2026, 1, 1), None], [datetime(2026, 1, 1, 12), None]])
def test_dates_and_times_can_be_keys(keys: list[Any]) -> None:
    assert len(set(hashes(pa.array(keys)))) == 2


def test_a_key_that_cannot_be_hashed_is_refused_by_its_type() -> None:
    with pytest.raises(DataError, match=r"list<.*Allowed: text"):
        hashes(pa.array([[1], [2]]))


def test_sums_keep_names_and_order() -> None:
    table = pa.table({"key": ["b", "a", "b"], "n": [1, 2, 3], "x": [0.5, 1.0, 1.5]})
    assert sum_by_key(table).to_pydict() == {"key": ["b", "a"], "n": [4, 2], "x": [2.0, 1.0]}


def test_more_pieces_have_more_partitions_up_to_a_bound() -> None:
    numbers = [default_partitions(pieces) for pieces in (1, 2, 25, 100, 10_000)]
    assert numbers == [1, 2, 10, 20, 64]
