"""Counting words, the map side of a word count, in a few passes over Arrow's buffers.

Most words are short, and a short word fits into one integer: seven bytes and their number. Sorting integers is some
five times as fast as hashing strings, so short words are packed, sorted and counted, and only long ones are hashed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidepool.data.mapreduce import text_buffers

SHORT = 7
"""Longest word, in bytes of UTF-8, that is packed: the eighth byte of the integer holds the length."""

Packed = npt.NDArray[np.uint64]


def count_words(lines: pa.Table) -> pa.Table:
    """`text` to `word` and `count`, each word once. Words are what lies between white space, as in `str.split`."""
    text = lines["text"].cast(pa.string()).combine_chunks()
    words = _split(text)
    data, offsets = text_buffers(words)
    lengths = np.diff(offsets)
    short = (lengths > 0) & (lengths <= SHORT)  # white space at an end of a line leaves empty words
    packed, counts = np.unique(_pack(data, offsets[:-1][short], lengths[short]), return_counts=True)
    long = pa.table({"word": words.filter(pa.array(lengths > SHORT))})
    return pa.concat_tables(
        [
            pa.table({"word": _unpack(packed), "count": counts.astype(np.int64)}),
            long.group_by("word", use_threads=False).aggregate([([], "count_all")]).rename_columns(["word", "count"]),
        ]
    )


def _split(text: pa.StringArray) -> pa.StringArray:
    """The words of all lines, in order.

    Arrow's kernel looks past the end of its buffer, and where no UTF-8 follows keeps white space as part of a word
    (pyarrow 26). So the last line that isn't empty, which ends the buffer, isn't left to it.
    """
    filled = np.flatnonzero(np.diff(text_buffers(text)[1]))
    end = int(filled[-1]) if len(filled) else 0
    most, last = text[:end], text[end : end + 1].to_pylist()
    of_last = pa.array([word for line in last for word in (line or "").split()], pa.string())
    return pa.concat_arrays([pc.list_flatten(pc.utf8_split_whitespace(most)), of_last])


def _pack(data: npt.NDArray[np.uint8], starts: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> Packed:
    """Each word as an integer: its bytes, the first one lowest, and its length as the highest byte."""
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    anywhere = np.ndarray(len(data) + 1, "<u8", buffer=padded, strides=(1,))  # the eight bytes from every position on
    masks = (np.uint64(1) << np.arange(0, 8 * SHORT + 1, 8, dtype=np.uint64)) - np.uint64(1)
    packed: Packed = anywhere[starts] & masks[lengths]
    return packed | (lengths.astype(np.uint64) << np.uint64(8 * SHORT))


def _unpack(packed: Packed) -> pa.StringArray:
    """The inverse of `_pack`."""
    letters = packed.astype("<u8").view(np.uint8).reshape(-1, SHORT + 1)
    lengths = letters[:, SHORT]
    data = letters[:, :SHORT][np.arange(SHORT) < lengths[:, None]]
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(packed), pa.py_buffer(offsets), pa.py_buffer(data))
