"""A worker's part in a training run, apart from the steps: what it begins with, what it keeps, how it fails."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidepool import checkpoint
from tidepool.errors import TidepoolError, TrainingError
from tidepool.recipe import load_recipe
from tidepool.spec import Spec
from tidepool.train.board import News
from tidepool.train.tracking import Run

if TYPE_CHECKING:
    import torch

    from tidepool.train.loop import Trainee
    from tidepool.train.strategies import Group

NICENESS = 10
"""What workers add to their process's: a tenth of the processor's time beside a replica that wants all of it."""
KEPT = 2
"""Checkpoints that a run keeps: the newest, and one more in case its bytes go bad."""


@dataclass(frozen=True)
class Part:
    """What every worker of a run is given: the spec, the run's record, and the board on which it writes."""

    spec: Spec
    run: Run
    board: Any

    def trainee(self, group: Group | None, device: torch.device) -> Trainee:
        """A worker at the beginning of the run, its data loaded."""
        from tidepool.data.prepared import open_prepared
        from tidepool.train.loop import Trainee

        rows = open_prepared(self.run.data_uri).load("train")
        return Trainee(load_recipe(self.spec.recipe, self.spec.params), self.spec.train, rows, group, device)

    def restore(self, trainee: Trainee) -> int | None:
        """Go back to the last checkpoint; its step, None if there is none."""
        newest = checkpoint.latest(self.run.checkpoints)
        if newest is None:
            return None
        state = checkpoint.load(newest.uri)
        trainee.restore(state)
        self.board.tell.remote(News(state.step, state.facts["loss"], 0.0))
        return state.step

    def save(self, trainee: Trainee, loss: float) -> None:
        """Write a checkpoint of this step boundary, and drop those that are too old to be kept."""
        checkpoint.save(self.run.checkpoints, trainee.state(run=self.run.digest, data=self.run.data_digest, loss=loss))
        checkpoint.prune(self.run.checkpoints, KEPT)

    def failure(self, rank: int, step: int, error: Exception) -> TrainingError:
        """`error` as what a person reads of it."""
        return failure(f"training of {self.spec.name} failed in worker {rank}, step {step}", error)


def failure(what: str, error: Exception) -> TrainingError:
    """`error` as a message of one line, with the place in the code if it is none of tidepool's own."""
    remedy = "train again: the run goes on"
    if isinstance(error, TidepoolError):
        remedy = f"{error.remedy or 'correct it'}; then {remedy}"
        return TrainingError(f"{what}: {error.what}", seen=error.seen, allowed=error.allowed, remedy=remedy)
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    place = f", at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return TrainingError(what, seen=text + place, remedy=f"correct it; then {remedy}")
