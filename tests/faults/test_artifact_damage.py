"""Whatever happens to an artifact's bytes, nobody gets a wrong answer out of it."""

from __future__ import annotations

import errno
import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, open_artifact
from tidepool.errors import CorruptionError, StorageError
from tidepool.storage import BUILDING, MANIFEST, new_folder, read_manifest, seal, verify

FILES = (ONNX, WEIGHTS, GOLDEN)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
def test_a_flipped_byte_is_refused(make_artifact: Callable[..., Path], name: str, where: float) -> None:
    path = make_artifact() / name
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 0x01
    path.write_bytes(content)
    with pytest.raises(CorruptionError, match=name):
        open_artifact(str(path.parent))


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short_is_refused(make_artifact: Callable[..., Path], name: str) -> None:
    path = make_artifact() / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptionError, match=name):
        open_artifact(str(path.parent))


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_lost_file_is_refused(make_artifact: Callable[..., Path], name: str) -> None:
    folder = make_artifact()
    (folder / name).unlink()
    with pytest.raises(CorruptionError, match=name):
        open_artifact(str(folder))


def test_a_forged_manifest_does_not_pass_for_the_registered_artifact(make_artifact: Callable[..., Path]) -> None:
    folder = make_artifact()
    registered = open_artifact(str(folder)).digest
    manifest = read_manifest(folder)
    files = manifest.pop("files")
    seal(str(folder), files, {**manifest, "metrics": {"accuracy": 1.0}})
    with pytest.raises(CorruptionError, match="not the artifact that was registered"):
        open_artifact(str(folder), expected_digest=registered)


@pytest.mark.parametrize("name", ["../authorized_keys", "/etc/passwd", "sub/../../x"])
def test_an_artifact_that_names_files_outside_its_folder_is_refused(
    make_artifact: Callable[..., Path], name: str
) -> None:
    folder = make_artifact()
    (folder.parent / "authorized_keys").write_bytes(b"key")
    manifest = read_manifest(folder)
    files = {**manifest.pop("files"), name: {"sha256": hashlib.sha256(b"key").hexdigest(), "bytes": 3}}
    seal(str(folder), files, manifest)
    with pytest.raises(CorruptionError, match="outside its folder"):
        open_artifact(str(folder))


def test_a_full_disk_leaves_the_earlier_artifact_in_place(make_artifact: Callable[..., Path]) -> None:
    folder = make_artifact()
    before = verify(folder)

    def write_to_a_full_disk() -> None:
        with new_folder(str(folder)) as building:
            (building / ONNX).symlink_to("/dev/full")
            (building / ONNX).write_bytes(b"x")

    with pytest.raises(StorageError, match="free some space") as caught:
        write_to_a_full_disk()
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC
    assert verify(folder) == before


def test_a_writer_that_is_killed_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from tidepool.storage import new_folder\n"
        "with new_folder(sys.argv[1]) as building:\n"
        "    (building / 'model.onnx').write_bytes(b'x' * 1000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    target = tmp_path / "artifact"
    killed = subprocess.run([sys.executable, "-c", program, str(target)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    for leftover in tmp_path.iterdir():
        with pytest.raises(CorruptionError):
            verify(leftover)
    with new_folder(str(target)) as building:
        (building / ONNX).write_bytes(b"x")
    assert verify(target)["files"][ONNX]["bytes"] == 1


def test_a_disk_that_fails_at_the_last_step_leaves_the_earlier_artifact_in_place(
    make_artifact: Callable[..., Path],
) -> None:
    program = (
        "import os, sys\n"
        "from tidepool.storage import new_folder\n"
        "faults = [OSError(5, 'Input/output error')]\n"
        "def fail_once(event, arguments):\n"
        "    if event == 'os.rename' and str(arguments[1]) == sys.argv[1] and faults:\n"
        "        raise faults.pop()\n"
        "sys.addaudithook(fail_once)\n"
        "with new_folder(sys.argv[1]) as building:\n"
        "    (building / 'model.onnx').write_bytes(b'x')\n"
    )
    folder = make_artifact()
    before = verify(folder)
    failed = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=False)
    assert "StorageError: can't write" in failed.stderr
    assert verify(folder) == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(BUILDING)] == []
