"""Full disks and killed writers: what was a checkpoint before stays one, and a half one never counts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidepool import checkpoint

BEGIN = """
import resource, signal, sys, torch
from tidepool import checkpoint
from tidepool.errors import StorageError

def state(step, size):
    return checkpoint.TrainState(step, 0, 0, {"w": torch.full((size,), float(step))}, {}, torch.get_rng_state())
"""

FILL = f"""{BEGIN}
folder, limit = sys.argv[1:]
before = checkpoint.save(folder, state(1, 10))
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    checkpoint.save(folder, state(2, 1_000_000))
except StorageError as error:
    print(error)
assert checkpoint.latest(folder) == before
assert checkpoint.load(before.uri).step == 1
"""

SAVE_ON_AND_ON = f"""{BEGIN}
step = 0
while True:
    step += 1
    checkpoint.save(sys.argv[1], state(step, 2_000_000))
    checkpoint.prune(sys.argv[1], keep=2)
"""


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A folder on a disk of 1 MB; where none can be mounted, any folder, and a largest file size instead (else 0)."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        yield folder, 1_000_000
        return
    yield folder, 0
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_reported_and_leaves_the_checkpoint_before(small_disk: tuple[Path, int]) -> None:
    folder, limit = small_disk
    arguments = [str(folder / "checkpoints"), str(limit)]
    script = subprocess.run([sys.executable, "-c", FILL, *arguments], capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
    assert "can't write" in script.stdout
    assert limit or "No space left on device" in script.stdout
    assert limit or "free some space" in script.stdout
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000000001"], "nothing half written"


def test_a_writer_killed_in_the_middle_leaves_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", SAVE_ON_AND_ON, str(tmp_path)]) as writer:
        wait_for_step(tmp_path, 5)
        writer.kill()
    newest = max(path.name for path in tmp_path.glob("step-*"))
    latest = checkpoint.latest(str(tmp_path))
    assert latest is not None
    assert latest.uri == str(tmp_path / newest), "what has its final name is whole"
    assert checkpoint.load(latest.uri).weights["w"].eq(latest.step).all()
    checkpoint.prune(str(tmp_path), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == [newest]


def wait_for_step(folder: Path, step: int, deadline_s: float = 60.0) -> None:
    end = time.monotonic() + deadline_s
    while not list(folder.glob(f"step-*{step}")):
        assert time.monotonic() < end, "no such checkpoint"
        time.sleep(0.001)
