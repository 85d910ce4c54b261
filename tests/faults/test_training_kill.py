"""Train workers are killed, disks fill up: the run ends as it would have."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import torch

from tidepool import checkpoint
from tidepool.data.preprocess import prepare
from tidepool.recipe import load_recipe
from tidepool.spec import load_spec
from tidepool.train import trainer

DIGITS = Path(__file__).parents[2] / "deployments/digits/spec.yaml"


def test_a_killed_worker_changes_nothing_in_the_result(ray_cluster: None, tmp_path: Path) -> None:
    spec = load_spec(DIGITS, ["train.epochs=20", "train.checkpoint_every_s=0.2"])
    data = prepare(spec, load_recipe(spec.recipe, spec.params), str(tmp_path / "data"))
    runs = str(tmp_path / "runs")
    undisturbed = trainer.fit(spec, data, runs)

    killed = threading.Event()

    def kill_once(step: str, done: float, total: float, note: str = "") -> None:
        if done >= 60 and not killed.is_set():
            killed.set()
            os.kill(_train_workers()[-1].pid, signal.SIGKILL)

    disturbed = trainer.fit(spec, data, runs, kill_once)
    assert killed.is_set()
    assert disturbed.run_id != undisturbed.run_id
    assert disturbed.step == undisturbed.step
    before, after = (checkpoint.load(result.checkpoint.uri).weights for result in (undisturbed, disturbed))
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_full_disk_is_reported_and_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on the size of files stands for a full disk; a process can't lift it again, so it is one of its own."""
    script = f"""
import resource, signal, torch
from tidepool import checkpoint
from tidepool.errors import StorageError
def state(step, size):
    return checkpoint.TrainState(step, 0, 0, {{"w": torch.zeros(size)}}, {{}}, torch.get_rng_state())
before = checkpoint.save({str(tmp_path)!r}, state(1, 10))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save({str(tmp_path)!r}, state(2, 1_000_000))
except StorageError as error:
    print(error)
assert checkpoint.latest({str(tmp_path)!r}) == before
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "can't write" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000000001"]


def _train_workers() -> list[psutil.Process]:
    """The train workers of this session's cluster."""
    return [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(_command(p))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []
