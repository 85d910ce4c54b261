"""Prepared data: damage to the manifest, too, is found by whoever opens or reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidepool import storage
from tidepool.data.prepared import KIND, PreparedData, open_prepared
from tidepool.errors import CorruptionError


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder that says it is prepared data."""
    facts = {"kind": KIND, "digest": "d" * 64, "rows": {"train": 3, "test": 1}, "preprocessing": {}, "name": "digits"}
    with storage.new_folder(str(tmp_path / "prepared"), facts):
        pass
    return tmp_path / "prepared"


@pytest.mark.parametrize("word", [b'"train"', b'"preprocessing"', b'"name"', b'"digits"', b": 3"])
def test_a_flipped_byte_of_a_manifest_is_refused(place: Path, word: bytes) -> None:
    data = open_prepared(str(place))
    content = bytearray((place / storage.MANIFEST).read_bytes())
    content[content.index(word) + 2] ^= 1
    (place / storage.MANIFEST).write_bytes(content)
    with pytest.raises(CorruptionError):
        open_prepared(str(place))
    with pytest.raises(CorruptionError):
        data.load("train")


def test_another_kind_of_folder_is_refused(tmp_path: Path) -> None:
    with storage.new_folder(str(tmp_path / "x"), {"kind": "checkpoint"}):
        pass
    with pytest.raises(CorruptionError, match="not prepared data"):
        open_prepared(str(tmp_path / "x"))
    with pytest.raises(CorruptionError, match="not prepared data"):
        PreparedData(str(tmp_path / "x"), "d" * 64, {"train": 1}, {}, "digits").load("train")
