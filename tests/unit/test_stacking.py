"""Requests to one batch and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import RecipeError
from tidepool.recipe import TensorSpec
from tidepool.serve.protocol import Tensors
from tidepool.serve.stacking import Stacking, split, weight

FIXED = Stacking([TensorSpec("x", "FP32", (-1, 3))])
TOKENS = [TensorSpec("tokens", "INT64", (-1, -1)), TensorSpec("who", "BYTES", (-1,))]
RAGGED = Stacking(TOKENS)


def tokens(rows: int, length: int, value: int = 1) -> Tensors:
    who = np.full(rows, b"me", dtype=np.object_)
    return {"tokens": np.full((rows, length), value), "who": who}


def test_rows_of_equal_shape_share_a_batch_and_get_their_own_back_without_a_copy() -> None:
    requests = [{"x": np.full((rows, 3), rows, np.float32)} for rows in (1, 2, 4)]
    batch = FIXED.join(requests)
    assert batch["x"].shape == (7, 3)
    parts = split({"y": batch["x"]}, [1, 2, 4])
    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_array_equal(part["y"], request["x"])
        assert np.shares_memory(part["y"], batch["x"])


def test_a_request_alone_is_not_copied() -> None:
    request = {"x": np.ones((2, 3), np.float32)}
    assert FIXED.join([request])["x"] is request["x"]


def test_rows_of_other_lengths_are_of_another_group() -> None:
    assert RAGGED.group(tokens(1, 3)) == RAGGED.group(tokens(2, 3)) == ((3,), ())
    assert RAGGED.group(tokens(1, 3)) != RAGGED.group(tokens(1, 4))


def test_sizes_are_rows_or_elements_where_rows_differ() -> None:
    assert FIXED.size(FIXED.group({"x": np.ones((5, 3))}), 5) == 5
    assert RAGGED.size(RAGGED.group(tokens(5, 3)), 5) == 5 * (3 + 1)


def test_an_output_without_a_row_for_each_row_cannot_be_split() -> None:
    with pytest.raises(RecipeError, match="output y"):
        split({"y": np.ones(5)}, [1, 1])


def test_weight_counts_what_bytes_hold() -> None:
    assert weight({"a": np.array([b"abc", b""], dtype=np.object_), "b": np.ones(2, np.float32)}) == 3 + 8


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6))
def test_whatever_is_joined_comes_back_as_it_was(rows: list[int]) -> None:
    requests = [tokens(count, 5, value) for value, count in enumerate(rows)]
    batch = RAGGED.join(requests)
    parts = split({"tags": batch["tokens"], "who": batch["who"]}, rows)
    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_array_equal(part["tags"], request["tokens"])
        np.testing.assert_array_equal(part["who"], request["who"])
