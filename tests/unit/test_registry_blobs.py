"""Artifact bytes by their digest, on a real folder."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tidepool.artifact import open_artifact
from tidepool.errors import CorruptionError
from tidepool.registry.blobs import Blobs


def test_bytes_are_stored_under_their_digest_and_open_as_the_same_artifact(
    tmp_path: Path, make_artifact: Callable[..., Path]
) -> None:
    artifact = open_artifact(str(make_artifact()))
    uri = Blobs(f"{tmp_path}/artifacts/").put(artifact)
    assert uri == f"{tmp_path}/artifacts/{artifact.digest}"
    stored = open_artifact(uri, expected_digest=artifact.digest)
    assert stored.bytes == artifact.bytes
    assert stored.metrics == artifact.metrics


def test_putting_twice_leaves_the_first_bytes_where_they_are(
    tmp_path: Path, make_artifact: Callable[..., Path]
) -> None:
    blobs, artifact = Blobs(str(tmp_path / "artifacts")), open_artifact(str(make_artifact()))
    first = Path(blobs.put(artifact)).stat()
    assert Path(blobs.put(artifact)).stat().st_ino == first.st_ino
    assert [entry.name for entry in (tmp_path / "artifacts").iterdir()] == [artifact.digest]


def test_an_artifact_in_its_place_already_can_be_put(tmp_path: Path, make_artifact: Callable[..., Path]) -> None:
    blobs, artifact = Blobs(str(tmp_path / "artifacts")), open_artifact(str(make_artifact()))
    uri = blobs.put(artifact)
    assert blobs.put(open_artifact(uri)) == uri


def test_writers_of_the_same_bytes_at_once_all_succeed(tmp_path: Path, make_artifact: Callable[..., Path]) -> None:
    blobs, artifact = Blobs(str(tmp_path / "artifacts")), open_artifact(str(make_artifact()))
    together, uris = threading.Barrier(8), []

    def put() -> None:
        together.wait()
        uris.append(blobs.put(artifact))

    threads = [threading.Thread(target=put) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert uris == [blobs.uri(artifact.digest)] * 8
    assert [entry.name for entry in (tmp_path / "artifacts").iterdir()] == [artifact.digest]
    assert blobs.holds(artifact.digest)


def test_bytes_that_changed_after_opening_are_refused(tmp_path: Path, make_artifact: Callable[..., Path]) -> None:
    artifact = open_artifact(str(make_artifact()))
    artifact.onnx.write_bytes(artifact.onnx.read_bytes()[:-1] + b"?")
    with pytest.raises(CorruptionError, match=r"model\.onnx is not the file that was written"):
        Blobs(str(tmp_path / "artifacts")).put(artifact)
    assert not (tmp_path / "artifacts").exists()


def test_progress_is_told_file_by_file(tmp_path: Path, make_artifact: Callable[..., Path]) -> None:
    told: list[tuple[object, ...]] = []
    Blobs(str(tmp_path / "artifacts")).put(open_artifact(str(make_artifact())), lambda *news: told.append(news))
    assert told == [
        ("store", 0, 3, "golden.npz"),
        ("store", 1, 3, "model.onnx"),
        ("store", 2, 3, "weights.safetensors"),
        ("store", 3, 3),
    ]
