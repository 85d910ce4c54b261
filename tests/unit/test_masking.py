"""What is sensitive stays out of what is written."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import SpecError
from tidepool.serve.masking import Mask, outline
from tidepool.serve.protocol import Tensors

KEY = b"a key of the installation"


def text(*items: bytes) -> Tensors:
    return {"note": np.array(items, dtype=np.object_)}


def test_fields_without_a_rule_are_left_alone() -> None:
    tensors = {"x": np.ones(3), **text(b"hello")}
    masked = Mask({"other": "drop"}).tensors(tensors)
    assert all(masked[name] is tensors[name] for name in tensors)


def test_dropped_fields_are_missing() -> None:
    assert Mask({"note": "drop"}).tensors({"x": np.ones(3), **text(b"secret")}).keys() == {"x"}


def test_hashes_are_keyed_and_equal_for_equal_values() -> None:
    masked = Mask({"note": "hash"}, KEY).tensors(text(b"alice", b"bob", b"alice"))["note"]
    assert masked[0] == masked[2] != masked[1]
    assert masked[0] == hmac.digest(KEY, b"alice", hashlib.sha256).hex().encode()
    assert Mask({"note": "hash"}, b"another key, as long").tensors(text(b"alice"))["note"][0] != masked[0]


def test_numbers_are_hashed_by_the_row() -> None:
    masked = Mask({"x": "hash"}, KEY).tensors({"x": np.array([[1, 2], [1, 2], [1, 3]])})["x"]
    assert masked.shape == (3,)
    assert masked[0] == masked[1] != masked[2]


def test_a_pattern_blots_out_its_matches_only() -> None:
    masked = Mask({"note": r"pattern:\d{4,}"}).tensors(text(b"card 1234567 of 12", b"none"))
    assert masked["note"].tolist() == [b"card *** of 12", b"none"]


def test_a_pattern_for_what_is_no_text_drops_it() -> None:
    assert Mask({"x": "pattern:1"}).tensors({"x": np.ones(3)}) == {}


def test_records_are_masked_like_tensors() -> None:
    mask = Mask({"name": "hash", "note": "pattern:[0-9]+", "age": "hash", "raw": "drop"}, KEY)
    masked = mask.record({"name": "alice", "note": b"call 555", "age": 41, "raw": "x", "model": "digits"})
    assert masked["name"] == hmac.digest(KEY, b"alice", hashlib.sha256).hex()
    assert masked["note"] == "call ***"
    assert masked["model"] == "digits"
    assert not masked.keys() & {"age", "raw"}, "what a rule doesn't fit is dropped"


@pytest.mark.parametrize("rule", ["hide", "pattern:", "pattern:(", ""])
def test_a_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(SpecError, match="note"):
        Mask({"note": rule})


def test_hashing_without_a_key_is_refused() -> None:
    with pytest.raises(SpecError, match="without a key"):
        Mask({"note": "hash"})


def test_an_outline_of_an_error_does_not_quote_what_the_error_quotes() -> None:
    def parse(value: str) -> int:
        return int(value)

    with pytest.raises(ValueError, match="hunter2") as caught:
        parse("hunter2")
    written = outline(caught.value)
    assert "hunter2" not in written
    assert "ValueError <- parse" in written


@pytest.mark.parametrize("make", [lambda: "drop", lambda: "hash", lambda: "pattern:.*secret.*"])
@given(st.binary(max_size=20), st.binary(max_size=20))
def test_no_rule_lets_the_secret_through(make: Callable[[], str], before: bytes, after: bytes) -> None:
    before, after = before.replace(b"\n", b""), after.replace(b"\n", b"")
    masked = Mask({"note": make()}, KEY).tensors(text(before + b"secret" + after))
    assert all(b"secret" not in item for values in masked.values() for item in values)
