"""The steps of a training run, as one worker goes through them.

Knows no Ray: whatever runs it gives it a group, the rows, and what to do at a step boundary.

`Trainee` is a worker's share of the run: network, optimizer, place in the stream of samples. `run` is the loop.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from tidepool.checkpoint import TrainState
from tidepool.errors import TrainingError
from tidepool.recipe import Recipe
from tidepool.spec import TrainSpec
from tidepool.train import sampler
from tidepool.train.sampler import Place
from tidepool.train.strategies import DataParallel

Rows = Mapping[str, npt.NDArray[Any]]


class Outcome(enum.Enum):
    """How the loop ended."""

    FINISHED = "finished"
    YIELDED = "yielded"


@dataclass(frozen=True)
class Step:
    """What a step did."""

    number: int
    loss: float
    """Mean over the samples of the step, over all workers together."""
    samples: int


class Trainee:
    """One worker of a run."""

    def __init__(
        self,
        recipe: Recipe,
        spec: TrainSpec,
        rows: Rows,
        group: torch.distributed.ProcessGroup | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self._recipe, self._spec, self._device = recipe, spec, torch.device(device)
        self._features = [torch.tensor(rows[tensor.name]) for tensor in recipe.features]
        self._target = torch.tensor(rows[recipe.target])
        torch.manual_seed(spec.seed)
        self.network = recipe.network().to(self._device)
        self.optimizer = recipe.optimizer(self.network, spec.learning_rate)
        self.parallel = DataParallel(self.network, group)
        self.number = 0
        self.place = Place()
        self.total_steps = spec.epochs * sampler.steps_per_epoch(len(self._target), spec.global_batch_size)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.place.epoch >= self._spec.epochs

    def step(self, *flags: float) -> tuple[Step, list[float]]:
        """One optimizer step over the next global batch; also returns the sums of `flags` over all workers.

        Raises:
            TrainingError: the loss is not finite.
        """
        taken, after = sampler.step(self._spec.seed, self.place, len(self._target), self._spec.global_batch_size)
        mine = torch.from_numpy(sampler.share(taken, self.parallel.rank, self.parallel.size))
        # Randomness (dropout, say) is a function of seed, step and rank: a resumed run draws what it would have drawn.
        torch.manual_seed(hash((self._spec.seed, self.number, self.parallel.rank)) & (2**63 - 1))
        self._set_learning_rate()
        self.optimizer.zero_grad(set_to_none=True)
        summed = self._summed_loss(mine)
        if len(mine):
            (summed / len(taken)).backward()  # type: ignore[no-untyped-call]
        loss, *sums = self.parallel.reduce(float(summed.detach()), *flags)
        loss /= len(taken)
        if not math.isfinite(loss):
            raise TrainingError(
                "the loss is not finite", seen=f"{loss} at step {self.number}", remedy="lower train.learning_rate"
            )
        self.optimizer.step()
        self.number, self.place = self.number + 1, after
        return Step(self.number, loss, len(taken)), sums

    def state(self, **facts: Any) -> TrainState:
        """The run at this step boundary."""
        return TrainState(
            step=self.number,
            epoch=self.place.epoch,
            position=self.place.position,
            weights=dict(self.network.state_dict()),
            optimizer=self.optimizer.state_dict(),
            rng=torch.get_rng_state(),
            facts=facts,
        )

    def restore(self, state: TrainState) -> None:
        """Go on from `state`."""
        self.network.load_state_dict(state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.rng)
        self.number, self.place = state.step, Place(state.epoch, state.position)

    def _summed_loss(self, mine: torch.Tensor) -> torch.Tensor:
        if not len(mine):
            return torch.zeros(())
        features = [feature[mine].to(self._device) for feature in self._features]
        predictions = self.network(*features)
        predictions = predictions if isinstance(predictions, tuple) else (predictions,)
        return self._recipe.loss(predictions, self._target[mine].to(self._device)) * len(mine)

    def _set_learning_rate(self) -> None:
        """Cosine decay to zero over the run (Loshchilov and Hutter, 2017)."""
        factor = 0.5 * (1 + math.cos(math.pi * self.number / self.total_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = self._spec.learning_rate * factor


def run(
    trainee: Trainee,
    *,
    save: Callable[[Trainee, Step], None],
    told: Callable[[Step], None] | None = None,
    should_yield: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
    checkpoint_every_s: float = 30.0,
) -> Outcome:
    """Step until all epochs are done or rank 0 is asked to yield.

    `save` is called on every worker, at the same steps on all: when rank 0's clock says so, before yielding, and at
    the end. `told` hears of each step, on rank 0.
    """
    saved_at = clock()
    leads = trainee.parallel.rank == 0
    while not trainee.finished:
        # Rank 0's wishes travel with the gradients, so all workers act on them at the same step.
        yields = leads and should_yield()
        due = leads and clock() - saved_at >= checkpoint_every_s
        step, (yields_now, due_now) = trainee.step(float(yields), float(due))
        if leads and told:
            told(step)
        if yields_now or due_now or trainee.finished:
            save(trainee, step)
            saved_at = clock()
        if yields_now and not trainee.finished:
            return Outcome.YIELDED
    return Outcome.FINISHED
