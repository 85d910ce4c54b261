"""The registry under kills, a full disk and flipped bytes: never half a version, never a lost alias."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidepool.artifact import open_artifact
from tidepool.cli.main import app
from tidepool.errors import CorruptionError
from tidepool.registry.client import Registry
from tidepool.registry.recorder import connect

REGISTER = """
import os, resource, signal, sys
from tidepool.artifact import open_artifact
from tidepool.errors import StorageError
from tidepool.registry.client import Registry

url, artifacts, folder, moment = sys.argv[1:]

def progress(step, done, total, note=""):
    if f"{step} {done}" == moment:
        os.kill(os.getpid(), signal.SIGKILL)

artifact = open_artifact(folder)
if moment == "full disk":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    Registry(url, artifacts).register(artifact, progress=progress)
except StorageError as error:
    print(error)
"""

PROMOTE = """
import os, signal, sys
from tidepool.registry.client import Registry

def killer():
    os.kill(os.getpid(), signal.SIGKILL)

Registry(sys.argv[1], sys.argv[2], clock=killer).promote("digits", 2)
"""


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take a second to make: tests copy it."""
    file = tmp_path_factory.mktemp("registry") / "empty.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def places(tmp_path: Path, empty_database: Path) -> tuple[str, str]:
    """URL of an empty registry, and where its artifacts go."""
    database = shutil.copy(empty_database, tmp_path / "registry.db")
    return f"sqlite:///{database}", str(tmp_path / "artifacts")


@pytest.mark.parametrize("moment", ["store 0", "store 2", "store 3", "record 0", "record 1"])
def test_a_registration_killed_at_any_step_leaves_no_version(
    places: tuple[str, str], make_artifact: Callable[..., Path], moment: str
) -> None:
    folder = make_artifact()
    assert run(REGISTER, *places, str(folder), moment).returncode == -signal.SIGKILL
    registry = Registry(*places)
    assert registry.models() == []
    assert_the_next_registration_is_whole(registry, folder)


def test_a_registration_killed_after_its_version_leaves_it_whole(
    places: tuple[str, str], make_artifact: Callable[..., Path]
) -> None:
    folder = make_artifact()
    assert run(REGISTER, *places, str(folder), "record 2").returncode == -signal.SIGKILL
    version = Registry(*places).version("digits", 1)
    assert open_artifact(version.uri, expected_digest=version.digest).bytes == version.bytes


def test_a_first_database_killed_half_made_is_not_there(make_artifact: Callable[..., Path], tmp_path: Path) -> None:
    folder, places = make_artifact(), (f"sqlite:///{tmp_path}/home/registry.db", str(tmp_path / "artifacts"))
    process = subprocess.Popen([sys.executable, "-c", REGISTER, *places, str(folder), "never"])
    wait_until(lambda: any((tmp_path / "home").glob(".registry.db.*")))
    process.kill()
    process.wait(timeout=60)
    assert not (tmp_path / "home" / "registry.db").exists()
    assert_the_next_registration_is_whole(Registry(*places), folder)


def test_a_promotion_killed_half_way_moves_nothing(places: tuple[str, str], make_artifact: Callable[..., Path]) -> None:
    registry = Registry(*places)
    registry.register(open_artifact(str(make_artifact(favourite=1))))
    registry.register(open_artifact(str(make_artifact(favourite=2))))
    registry.promote("digits", 1)
    assert run(PROMOTE, *places).returncode == -signal.SIGKILL
    assert registry.version("digits").version == 1
    assert registry.history("digits") == [1]
    assert registry.promote("digits", 2).aliases == ("champion",)


def test_a_full_disk_refuses_the_artifact_and_leaves_nothing_behind(
    places: tuple[str, str], make_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    finished = run(REGISTER, *places, str(make_artifact()), "full disk")
    assert finished.returncode == 0
    assert "can't write" in finished.stdout
    assert list((tmp_path / "artifacts").iterdir()) == []
    assert Registry(*places).models() == []


@pytest.mark.parametrize("file", ["model.onnx", "weights.safetensors", "golden.npz", "manifest.json"])
def test_a_flipped_byte_is_refused(places: tuple[str, str], make_artifact: Callable[..., Path], file: str) -> None:
    folder = make_artifact()
    artifact = open_artifact(str(folder))
    flip(folder / file)
    with pytest.raises(CorruptionError):
        Registry(*places).register(artifact)
    assert Registry(*places).models() == []


def test_bytes_damaged_in_the_store_are_noticed_and_mended_by_registering_again(
    places: tuple[str, str], make_artifact: Callable[..., Path]
) -> None:
    registry, folder = Registry(*places), make_artifact()
    stored = Path(registry.register(open_artifact(str(folder))).uri)
    flip(stored / "model.onnx")
    with pytest.raises(CorruptionError, match=r"model\.onnx"):
        open_artifact(registry.version("digits", 1).uri)
    version = registry.register(open_artifact(str(folder)))
    assert Path(version.uri) == stored
    assert (
        open_artifact(version.uri, expected_digest=version.digest).onnx.read_bytes()
        == (folder / "model.onnx").read_bytes()
    )


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_an_alias_never_moves_to_a_version_whose_bytes_are_damaged(
    places: tuple[str, str], make_artifact: Callable[..., Path], file: str
) -> None:
    registry = Registry(*places)
    first, second = (registry.register(open_artifact(str(make_artifact(favourite)))) for favourite in (1, 2))
    registry.promote("digits", first.version)
    registry.promote("digits", second.version)
    flip(Path(first.uri) / file)
    with pytest.raises(CorruptionError):
        registry.promote("digits", first.version)
    with pytest.raises(CorruptionError):
        registry.rollback("digits")
    assert registry.version("digits").version == second.version
    assert registry.history("digits") == [1, 2]


def test_a_promotion_that_no_cluster_hears_of_is_said_to_be_done(
    places: tuple[str, str], make_artifact: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(*places)
    registry.register(open_artifact(str(make_artifact())))
    monkeypatch.setenv("TIDEPOOL_REGISTRY_URL", places[0])
    monkeypatch.setenv("TIDEPOOL_STORAGE_URL", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a port on which nobody listens
    done = CliRunner().invoke(app, ["promote", "digits", "1"])
    assert done.exit_code == 0
    assert done.stdout == "digits@champion is version 1\n"
    assert "no cluster was told" in done.stderr
    assert registry.version("digits").version == 1
    again = CliRunner().invoke(app, ["promote", "digits", "1"])
    assert again.stdout == "digits@champion is version 1 already; nothing has changed\n"
    assert "no cluster was told" in again.stderr
    assert json.loads(CliRunner().invoke(app, ["promote", "digits", "1", "--json"]).stdout)["version"] == 1


def assert_the_next_registration_is_whole(registry: Registry, folder: Path) -> None:
    version = registry.register(open_artifact(str(folder)))
    assert version.version == 1
    assert open_artifact(version.uri, expected_digest=version.digest).bytes == version.bytes


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, as a failing disk does."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], text=True, stdout=subprocess.PIPE, timeout=60, check=False
    )


def wait_until(condition: Callable[[], bool], deadline_s: float = 60) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "the condition never held"
        time.sleep(0.002)
