"""Two processes at one registry, on a real SQLite database."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tidepool.artifact import open_artifact
from tidepool.registry.client import Registry


def test_two_processes_that_promote_at_once_lose_no_move(make_artifact: Callable[..., Path], tmp_path: Path) -> None:
    places = f"sqlite:///{tmp_path}/registry.db", str(tmp_path / "artifacts")
    registry, artifact = Registry(*places), open_artifact(str(make_artifact()))
    for _ in range(4):
        registry.register(artifact)
    script = """
import sys
from tidepool.registry.client import Registry
registry = Registry(sys.argv[1], sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(10):
    for version in sys.argv[3:]:
        registry.promote("digits", int(version))
"""
    together(script, [(*places, "1", "3"), (*places, "2", "4")])
    moved = [move.version for move in registry.models()[0].moves["champion"]]
    assert [version for version in moved if version in (1, 3)] == [1, 3] * 10
    assert [version for version in moved if version in (2, 4)] == [2, 4] * 10
    assert registry.version("digits").version == moved[-1]
    assert moved != [1, 3] * 10 + [2, 4] * 10, "the two never overlapped, so that nothing was tried"


def test_two_processes_that_register_first_share_one_new_database(
    make_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    script = """
import sys
from tidepool.artifact import open_artifact
from tidepool.registry.client import Registry
registry = Registry(sys.argv[1], sys.argv[2])
artifact = open_artifact(sys.argv[3])
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    registry.register(artifact)
"""
    places = f"sqlite:///{tmp_path}/new/registry.db", str(tmp_path / "artifacts")
    together(script, [(*places, str(make_artifact()))] * 2)
    (model,) = Registry(*places).models()
    assert [version.version for version in model.versions] == [6, 5, 4, 3, 2, 1]
    assert [entry.name for entry in (tmp_path / "new").iterdir()] == ["registry.db"]


def together(script: str, arguments: list[tuple[str, ...]]) -> None:
    """Run the script once for each row of arguments; when all say that they are ready, all may go on."""
    processes = [
        subprocess.Popen([sys.executable, "-c", script, *row], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for row in arguments
    ]
    assert [process.stdout.readline() for process in processes if process.stdout] == ["ready\n"] * len(processes)
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        process.communicate(timeout=60)
    assert [process.returncode for process in processes] == [0] * len(processes)
