"""Requests to one batch and back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import RecipeError
from tidepool.recipe import TensorSpec
from tidepool.serve.protocol import Tensors
from tidepool.serve.stacking import Pad, Stacking, weight

FIXED = Stacking([TensorSpec("x", "FP32", (-1, 3))])
TOKENS = [TensorSpec("tokens", "INT64", (-1, -1)), TensorSpec("who", "BYTES", (-1,))]
PADDED = Stacking(TOKENS, {"tokens": Pad(axis=1, lengths=(4, 8), value=-1, outputs={"tags": 1})})


def tokens(rows: int, length: int, value: int = 1) -> Tensors:
    who = np.full(rows, b"me", dtype=np.object_)
    return {"tokens": np.full((rows, length), value), "who": who}


def test_rows_of_equal_shape_share_a_batch_and_get_their_own_back_without_a_copy() -> None:
    requests = [{"x": np.full((rows, 3), rows, np.float32)} for rows in (1, 2, 4)]
    batch = FIXED.join(requests, FIXED.group(requests[0]))
    assert batch["x"].shape == (7, 3)
    parts = FIXED.split({"y": batch["x"]}, requests, [1, 2, 4])
    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_array_equal(part["y"], request["x"])
        assert np.shares_memory(part["y"], batch["x"])


def test_a_request_alone_is_not_copied() -> None:
    request = {"x": np.ones((2, 3), np.float32)}
    assert FIXED.join([request], FIXED.group(request))["x"] is request["x"]


def test_rows_of_other_lengths_are_of_another_group_unless_they_are_filled_up_alike() -> None:
    exact = Stacking(TOKENS)
    assert exact.group(tokens(1, 3)) != exact.group(tokens(1, 4))
    assert PADDED.group(tokens(1, 3)) == PADDED.group(tokens(2, 4)) != PADDED.group(tokens(1, 5))
    assert PADDED.group(tokens(1, 9)) == ((9,), ()), "longer than all lengths stays as it is"


def test_filled_rows_hold_the_value_and_outputs_are_cut_back() -> None:
    requests = [tokens(1, 2), tokens(2, 4)]
    batch = PADDED.join(requests, PADDED.group(requests[0]))
    assert batch["tokens"].tolist() == [[1, 1, -1, -1], [1, 1, 1, 1], [1, 1, 1, 1]]
    parts = PADDED.split({"tags": batch["tokens"], "score": np.zeros((3, 4))}, requests, [1, 2])
    assert [part["tags"].shape for part in parts] == [(1, 2), (2, 4)]
    assert parts[0]["score"].shape == (1, 4)


def test_a_request_is_filled_up_alike_alone_and_in_company() -> None:
    request = tokens(1, 3)
    alone = PADDED.join([request], PADDED.group(request))["tokens"]
    company = PADDED.join([request, tokens(1, 4)], PADDED.group(request))["tokens"]
    np.testing.assert_array_equal(alone[0], company[0])
    assert PADDED.split({"tags": alone}, [request], [1])[0]["tags"].shape == (1, 3)


def test_sizes_are_rows_or_elements_where_rows_differ() -> None:
    assert FIXED.size(FIXED.group({"x": np.ones((5, 3))}), 5) == 5
    assert PADDED.size(PADDED.group(tokens(5, 3)), 5) == 5 * (4 + 1)


def test_an_output_without_a_row_for_each_row_cannot_be_split() -> None:
    requests = [{"x": np.ones((1, 3), np.float32)}] * 2
    with pytest.raises(RecipeError, match="output y"):
        FIXED.split({"y": np.ones(5)}, requests, [1, 1])


@pytest.mark.parametrize(
    ("name", "pad"),
    [
        ("nobody", Pad(1, (4,))),
        ("who", Pad(1, (4,))),
        ("tokens", Pad(0, (4,))),
        ("tokens", Pad(1, ())),
        ("tokens", Pad(1, (8, 4))),
    ],
)
def test_a_rule_that_fits_no_input_is_refused(name: str, pad: Pad) -> None:
    with pytest.raises(RecipeError, match=name):
        Stacking(TOKENS, {name: pad})


def test_weight_counts_what_bytes_hold() -> None:
    assert weight({"a": np.array([b"abc", b""], dtype=np.object_), "b": np.ones(2, np.float32)}) == 3 + 8


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(5, 8)), min_size=1, max_size=6))
def test_whatever_is_joined_comes_back_as_it_was(shapes: list[tuple[int, int]]) -> None:
    requests = [tokens(rows, length, value) for value, (rows, length) in enumerate(shapes)]
    batch = PADDED.join(requests, PADDED.group(requests[0]))
    parts = PADDED.split({"tags": batch["tokens"], "who": batch["who"]}, requests, [rows for rows, _ in shapes])
    for part, request in zip(parts, requests, strict=True):
        np.testing.assert_array_equal(part["tags"], request["tokens"])
        np.testing.assert_array_equal(part["who"], request["who"])
