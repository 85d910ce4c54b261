"""Folders appear whole or not at all, and damage is found."""

from __future__ import annotations

import hashlib
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tidepool import storage
from tidepool.errors import CorruptionError, StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed folder of two files."""
    target = tmp_path / "sealed"
    with storage.new_folder(str(target), {"kind": "test"}) as building:
        (building / "a.bin").write_bytes(bytes(range(256)))
        (building / "sub").mkdir()
        (building / "sub" / "b.txt").write_text("hello")
    return target


def test_a_sealed_folder_holds_its_files_and_facts(folder: Path) -> None:
    manifest = storage.verify(folder)
    assert manifest["kind"] == "test"
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {"a.bin": 256, "sub/b.txt": 5}


def test_nothing_appears_while_the_folder_is_being_filled(tmp_path: Path) -> None:
    with storage.new_folder(str(tmp_path / "x")) as building:
        (building / "a").write_text("a")
        assert not (tmp_path / "x").exists()
    assert (tmp_path / "x" / "a").is_file()


def test_a_failure_leaves_what_was_there_before(folder: Path) -> None:
    before = storage.verify(folder)

    def fail_half_way() -> None:
        with storage.new_folder(str(folder)) as building:
            (building / "a.bin").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert storage.verify(folder) == before
    assert [path.name for path in folder.parent.iterdir()] == ["sealed"]


def test_a_second_folder_at_the_same_place_replaces_the_first(folder: Path) -> None:
    with storage.new_folder(str(folder)) as building:
        (building / "new.txt").write_text("new")
    assert sorted(storage.verify(folder)["files"]) == ["new.txt"]


def test_a_flipped_byte_is_found(folder: Path) -> None:
    content = bytearray((folder / "a.bin").read_bytes())
    content[100] ^= 1
    (folder / "a.bin").write_bytes(content)
    with pytest.raises(CorruptionError, match=r"a\.bin"):
        storage.verify(folder)


def test_a_missing_file_is_found(folder: Path) -> None:
    (folder / "sub" / "b.txt").unlink()
    with pytest.raises(CorruptionError, match="no such file"):
        storage.verify(folder)


@pytest.mark.parametrize("manifest", [None, "", "{", "[]", "{}"])
def test_a_folder_without_a_whole_manifest_is_refused(folder: Path, manifest: str | None) -> None:
    (folder / storage.MANIFEST).unlink()
    if manifest is not None:
        (folder / storage.MANIFEST).write_text(manifest)
    with pytest.raises(CorruptionError, match="not a complete folder"):
        storage.verify(folder)


def test_every_flipped_bit_of_a_manifest_is_found(folder: Path) -> None:
    path = folder / storage.MANIFEST
    content = path.read_bytes()
    for where in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[where // 8] ^= 1 << where % 8
        path.write_bytes(damaged)
        with pytest.raises(CorruptionError):
            storage.read_manifest(folder)


@pytest.mark.parametrize("entry", [None, 3, {}, {"sha256": None}])
def test_a_manifest_of_another_shape_is_refused(folder: Path, entry: Any) -> None:
    manifest = {"files": {"a.bin": entry}}
    rest = hashlib.sha256(json.dumps(manifest, indent=2).encode()).hexdigest()
    (folder / storage.MANIFEST).write_text(json.dumps({**manifest, "sha256": rest}, indent=2))
    with pytest.raises(CorruptionError):
        storage.read_manifest(folder)


def test_the_digest_stands_for_content_and_facts(tmp_path: Path) -> None:
    def digest(name: str, content: str, fact: int) -> str:
        with storage.new_folder(str(tmp_path / name), {"fact": fact}) as building:
            (building / "a").write_text(content)
        return storage.digest(storage.read_manifest(tmp_path / name))

    assert digest("one", "x", 1) == digest("two", "x", 1)
    assert len({digest("one", "x", 1), digest("two", "y", 1), digest("three", "x", 2)}) == 3


def test_a_reader_of_json_sees_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.json"
    storage.write_json(path, {"version": 1}, mode=0o600)
    with pytest.raises(TypeError):
        storage.write_json(path, {"version": object()})
    assert json.loads(path.read_text()) == {"version": 1}
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["state.json"]


def test_the_manifest_of_a_bucket_is_read_without_its_files() -> None:
    bucket = f"fsspec+memory:///{uuid.uuid4().hex}/sealed"
    with storage.new_folder(bucket, {"kind": "test"}) as building:
        (building / "a.bin").write_bytes(b"many")
    storage.remove(f"{bucket}/a.bin")
    assert storage.read_manifest(bucket)["files"]["a.bin"]["bytes"] == 4
    with pytest.raises(CorruptionError, match="not a complete folder"):
        storage.read_manifest(f"{bucket}-2")


def test_a_file_uri_is_a_local_path(folder: Path) -> None:
    uri = f"file://{folder}"
    assert not storage.is_remote(uri)
    assert storage.fetch(uri, folder.parent / "cache") == folder
    with storage.new_folder(f"{uri}-2") as building:
        (building / "a").write_text("a")
    assert sorted(storage.verify(Path(f"{folder}-2"))["files"]) == ["a"]


def test_buckets_are_remote() -> None:
    assert all(storage.is_remote(uri) for uri in ("s3://bucket/x", "gs://bucket/x"))
    assert not any(storage.is_remote(uri) for uri in ("/tmp/x", "x/y", "~/x"))


def test_a_kind_of_storage_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="foo://x"), storage.new_folder("foo://x") as building:
        (building / "a").write_text("a")
    with pytest.raises(StorageError, match="foo://x"):
        storage.fetch("foo://x", tmp_path)
    with pytest.raises(StorageError, match="foo://x"):
        storage.remove("foo://x")


def test_fetching_what_is_not_there_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        storage.fetch(str(tmp_path / "nowhere"), tmp_path)


def test_a_place_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="can't write"), storage.new_folder(str(tmp_path / "file" / "x")):
        pass
