"""The record of a training run: `runs/<name>/<run_id>/run.json`, beside its checkpoints.

A run's id is `<digest8>-<n>`: the digest of everything that decides its result (data, recipe, params, train), and a
number. A run that isn't complete is gone on with by the next one of the same digest; a complete one is left alone.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pyarrow import fs

from tidepool import storage
from tidepool.checkpoint import Checkpoint
from tidepool.spec import Spec

RECORD = "run.json"


@dataclass(frozen=True)
class Run:
    """One training run."""

    uri: str
    """Its folder."""
    name: str
    run_id: str
    digest: str
    """Hex sha256 of what decides the result."""
    data_uri: str
    data_digest: str
    started: float
    """Seconds since the epoch."""
    state: Literal["running", "complete"] = "running"
    finished: float | None = None
    final: dict[str, Any] | None = None
    """The last checkpoint (uri, step, digest) of a complete run."""
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the training itself: loss, samples a second."""
    evaluation: dict[str, float] | None = None
    """Metrics on the held-out rows, once it was evaluated and met the gate."""

    @property
    def checkpoints(self) -> str:
        """The folder of its checkpoints."""
        return f"{self.uri}/checkpoints"

    @property
    def checkpoint(self) -> Checkpoint:
        """The last checkpoint of a complete run."""
        assert self.final is not None, "only a complete run has a final checkpoint"
        return Checkpoint(**self.final)


def run_digest(spec: Spec) -> str:
    """What a run is known by: equal specs, but for what doesn't touch training, are the same run."""
    return spec.digest("name", "data", "recipe", "params", "train")


def begin(
    runs: str, spec: Spec, data_uri: str, data_digest: str, clock: Callable[[], float] = time.time
) -> tuple[Run, bool]:
    """An incomplete run of the same spec and data, or a new one; and whether it had begun before.

    Raises:
        StorageError: the record can't be written.
    """
    digest = run_digest(spec)
    mine = [run for run in _all(runs, spec.name) if run.digest == digest]
    unfinished = [run for run in mine if run.state == "running" and run.data_digest == data_digest]
    if unfinished:
        return unfinished[-1], True
    run_id = f"{digest[:8]}-{len(mine) + 1}"
    uri = f"{runs.rstrip('/')}/{spec.name}/{run_id}"
    run = Run(uri, spec.name, run_id, digest, data_uri, data_digest, clock())
    _write(run)
    return run, False


def complete(
    run: Run, checkpoint: Checkpoint, metrics: dict[str, float], clock: Callable[[], float] = time.time
) -> Run:
    """Record that a run is complete."""
    done = dataclasses.replace(
        run, state="complete", finished=clock(), final=dataclasses.asdict(checkpoint), metrics=metrics
    )
    _write(done)
    return done


def evaluated(run: Run, metrics: dict[str, float]) -> None:
    """Record the metrics of a run that met the gate."""
    _write(dataclasses.replace(run, evaluation=metrics))


def latest_complete(runs: str, name: str, digest: str) -> Run | None:
    """The newest complete run of a model with this digest."""
    found = [run for run in _all(runs, name) if run.digest == digest and run.state == "complete"]
    return found[-1] if found else None


def _all(runs: str, name: str) -> list[Run]:
    """All runs of a model, oldest first; a folder without a readable record counts for none."""
    root = f"{runs.rstrip('/')}/{name}"
    store, path = _open(root)
    found = []
    for info in store.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        try:
            with store.open_input_stream(f"{info.path}/{RECORD}") as file:
                found.append(Run(**json.loads(file.read())))
        except (OSError, ValueError, TypeError):
            continue
    return sorted(found, key=lambda run: run.started)


def _write(run: Run) -> None:
    record = dataclasses.asdict(run)
    if not storage.is_remote(run.uri):
        storage.write_json(storage.local_path(run.uri) / RECORD, record)
        return
    store, path = _open(run.uri)
    with storage.explained("write", run.uri), store.open_output_stream(f"{path}/{RECORD}") as out:
        out.write(json.dumps(record, indent=2).encode())


def _open(uri: str) -> tuple[fs.FileSystem, str]:
    opened: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(
        uri if storage.is_remote(uri) else str(storage.local_path(uri).absolute())
    )
    return opened
