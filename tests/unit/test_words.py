"""Words are those of `str.split`, counted exactly, whatever their length and bytes."""

from __future__ import annotations

import sys
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidepool.data.words import SHORT, _split, count_words


def counted(lines: list[str]) -> dict[str, int]:
    """Word to count; fails if a word is there twice."""
    table = count_words(pa.table({"text": pa.array(lines, pa.string())}))
    assert table.schema == pa.schema({"word": pa.string(), "count": pa.int64()})
    words = table["word"].to_pylist()
    assert len(set(words)) == len(words)
    return dict(zip(words, table["count"].to_pylist(), strict=True))


def expected(lines: list[str]) -> Counter[str]:
    """The same with the standard library."""
    return Counter(word for line in lines for word in line.split())


@settings(deadline=None)
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8") | st.sampled_from(" \t\u2003\u0085\x1c"))))
def test_words_are_those_of_str_split(lines: list[str]) -> None:
    assert counted(lines) == expected(lines)


@settings(deadline=None)
@given(st.lists(st.text(alphabet="a\0 ", min_size=SHORT - 2, max_size=SHORT + 2)))
def test_words_of_zero_bytes_and_around_the_packed_length_are_told_apart(lines: list[str]) -> None:
    assert counted(lines) == expected(lines)


@pytest.mark.parametrize("length", range(SHORT - 1, SHORT + 3))
def test_the_last_word_of_a_block_is_whole(length: int) -> None:
    assert counted(["x " + "ab" * length]) == {"x": 1, "ab" * length: 1}


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_what_lies_behind_the_last_word_in_memory_does_not_matter(rows: int) -> None:
    ends = np.array([0] + [2] * rows, np.int32)  # one line, and empty ones after it
    lines = pa.StringArray.from_buffers(rows, pa.py_buffer(ends), pa.py_buffer(b"H\t" + b"\x80" * 8))
    assert [word for word in _split(lines).to_pylist() if word] == ["H"]


def test_every_white_space_character_of_python_parts_words() -> None:
    spaces = [chr(i) for i in range(sys.maxunicode + 1) if chr(i).isspace()]
    assert counted([f"left{space}right" for space in spaces]) == {"left": len(spaces), "right": len(spaces)}


def test_a_part_of_a_larger_table_is_counted_alone() -> None:
    table = pa.table({"text": ["before", "tide pool tide", "after"]}).slice(1, 1)
    assert sorted(zip(*count_words(table).to_pydict().values(), strict=True)) == [("pool", 1), ("tide", 2)]


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_text_is_counted_however_it_is_stored(kind: pa.DataType) -> None:
    lines = pa.chunked_array([["tide pool"], ["interesting tide"]]).cast(kind)
    counts = count_words(pa.table({"text": lines})).to_pydict()
    assert sorted(zip(*counts.values(), strict=True)) == [("interesting", 1), ("pool", 1), ("tide", 2)]


@pytest.mark.parametrize("lines", [[], [""], [" \t "]])
def test_text_without_words_has_no_counts(lines: list[str]) -> None:
    assert counted(lines) == {}


def test_white_space_at_the_very_end_is_never_part_of_a_word() -> None:
    lines = ["aaaaa", "aaaaaaaa", *["aaaaaaaaa"] * 4, "aaaaaa", "aaaaaaaa "]
    assert [counted(lines) for _ in range(300)] == [dict(expected(lines))] * 300
