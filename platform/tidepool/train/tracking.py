"""The record of a training run: `<runs>/<name>/<run_id>/run.json`, beside its checkpoints.

A run's id is `<digest8>-<n>`: the digest of everything that decides its result, and a number. A run that isn't complete
is gone on with by the next one of the same digest and data; a complete one is left alone.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pyarrow import fs

from tidepool import storage
from tidepool.checkpoint import Checkpoint
from tidepool.errors import TrainingError
from tidepool.spec import Spec

log = logging.getLogger(__name__)

RECORD = "run.json"

EFFORT = {"num_workers", "accelerator", "resize", "checkpoint_every_s", "max_failures"}
"""Fields of `train` that say how a run is carried out. Its result is the same, so a change of them resumes it."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    uri: str
    """Its folder."""
    name: str
    run_id: str
    digest: str
    """Hex sha256 of what decides the result, see `run_digest`."""
    data_uri: str
    data_digest: str
    started: float
    """Seconds since the epoch, as is `finished`."""
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
        """The last checkpoint of a complete run.

        Raises:
            TrainingError: the run isn't complete.
        """
        if self.final is None:
            raise TrainingError("the run isn't complete", seen=self.run_id, remedy="train again: it goes on")
        return Checkpoint(**self.final)


def run_digest(spec: Spec) -> str:
    """Hex sha256 of the sections data, recipe, params and train, less what only says how a run is carried out."""
    decisive = spec.model_dump(mode="json", include={"name", "data", "recipe", "params", "train"})
    decisive["train"] = {field: value for field, value in decisive["train"].items() if field not in EFFORT}
    return storage.digest(decisive)


def begin(runs: str, spec: Spec, data_uri: str, data_digest: str, clock: Callable[[], float] = time.time) -> Run:
    """The newest run of the same spec and data that isn't complete, or else a new one.

    Raises:
        StorageError: the records can't be read, or the new one can't be written.
    """
    digest, known = run_digest(spec), _all(runs, spec.name)
    for run in reversed(known):
        if run.state == "running" and (run.digest, run.data_digest) == (digest, data_digest):
            return run
    root = _root(runs, spec.name)
    numbers = [int(number) for name in _names(root) if (number := name.removeprefix(f"{digest[:8]}-")).isdecimal()]
    run_id = f"{digest[:8]}-{max(numbers, default=0) + 1}"
    run = Run(f"{root}/{run_id}", spec.name, run_id, digest, data_uri, data_digest, clock())
    _write(run)
    return run


def complete(
    run: Run, checkpoint: Checkpoint, metrics: dict[str, float], clock: Callable[[], float] = time.time
) -> Run:
    """Record that a run is complete.

    Raises:
        StorageError: the record can't be written.
    """
    final = dataclasses.asdict(checkpoint)
    done = dataclasses.replace(run, state="complete", finished=clock(), final=final, metrics=metrics)
    _write(done)
    return done


def evaluated(run: Run, metrics: dict[str, float]) -> None:
    """Record the metrics of a run that met the gate.

    Raises:
        StorageError: the record can't be written.
    """
    _write(dataclasses.replace(run, evaluation=metrics))


def latest_complete(runs: str, name: str, digest: str) -> Run | None:
    """The newest complete run of a model with this `run_digest`.

    Raises:
        StorageError: the records can't be read.
    """
    found = [run for run in _all(runs, name) if run.digest == digest and run.state == "complete"]
    return found[-1] if found else None


def _all(runs: str, name: str) -> list[Run]:
    """All runs of a model, oldest first. A record that can't be understood is passed over with a warning."""
    root = _root(runs, name)
    found = []
    for folder in _names(root):
        store, path = fs.FileSystem.from_uri(f"{root}/{folder}/{RECORD}")
        with storage.explained("read", f"{root}/{folder}/{RECORD}"):
            if not store.get_file_info(path).is_file:
                continue
            with store.open_input_stream(path) as file:
                content = file.read()
        try:
            found.append(Run(**json.loads(content)))
        except (ValueError, TypeError) as error:
            log.warning("passing over the record of run %s: %s", f"{root}/{folder}", error)
    return sorted(found, key=lambda run: run.started)


def _names(root: str) -> list[str]:
    store, path = fs.FileSystem.from_uri(root)
    with storage.explained("read", root):
        return [info.base_name for info in store.get_file_info(fs.FileSelector(path, allow_not_found=True))]


def _root(runs: str, name: str) -> str:
    base = runs.rstrip("/") if storage.is_remote(runs) else str(storage.local_path(runs).absolute())
    return f"{base}/{name}"


def _write(run: Run) -> None:
    storage.write_file(run.uri, RECORD, json.dumps(dataclasses.asdict(run), indent=2).encode())
