"""The steps of a training run, as one worker goes through them.

`Trainee` is the worker's part in the run: network, optimizer, place in the stream of samples. `run` is the loop.
Neither knows Ray: whoever calls gives the rows, the group of workers, and what to do at a step boundary.
"""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from tidepool.checkpoint import TrainState
from tidepool.errors import RecipeError, TrainingError
from tidepool.recipe import Recipe
from tidepool.spec import TrainSpec
from tidepool.train import sampler
from tidepool.train.sampler import Place
from tidepool.train.strategies import STRATEGIES, Group, from_first


class End(enum.Enum):
    """Why the loop ended."""

    FINISHED = "finished"
    YIELDED = "yielded"


@dataclass(frozen=True)
class Outcome:
    """How the loop ended: all epochs done, or asked to yield with some left."""

    end: End
    step: int
    """Optimizer steps done; the state after them is saved."""


@dataclass(frozen=True)
class Step:
    """What a step did, over all workers together."""

    number: int
    """Optimizer steps done, this one included."""
    loss: float
    """Mean over the samples."""
    samples: int


class Trainee:
    """One worker of a run."""

    def __init__(
        self,
        recipe: Recipe,
        spec: TrainSpec,
        rows: Mapping[str, npt.NDArray[Any]],
        group: Group | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """`rows`: the recipe's features and target, axis 0 the rows, all of them on every worker.

        Raises:
            RecipeError: a column is of a type that torch has no tensor for.
        """
        self._recipe, self._spec, self._device = recipe, spec, torch.device(device)
        self._features = [_tensor(feature.name, rows) for feature in recipe.features]
        self._target = _tensor(recipe.target, rows)
        torch.manual_seed(spec.seed)
        self.network = recipe.network().to(self._device).train()
        self.optimizer = recipe.optimizer(self.network, spec.learning_rate)
        self._peaks = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.parallel = STRATEGIES[spec.strategy](self.network, group)
        self.number, self.place = 0, Place()
        self.total_steps = sampler.total_steps(len(self._target), spec.global_batch_size, spec.epochs)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.number >= self.total_steps

    def step(self, *wishes: float) -> tuple[Step, list[float]]:
        """One optimizer step over the next global batch; also returns the sums of `wishes` over all workers.

        Raises:
            TrainingError: the loss is not finite; the weights are those of before.
        """
        taken, after = sampler.step(self._spec.seed, self.place, len(self._target), self._spec.global_batch_size)
        mine = torch.from_numpy(sampler.share(taken, self.parallel.rank, self.parallel.size).copy())
        # Dropout and the like depend on seed, step and rank alone: a resumed run draws what it would have drawn.
        torch.manual_seed(sampler.draw(self._spec.seed, self.number, self.parallel.rank))
        self._set_learning_rates()
        self.parallel.align()
        self.optimizer.zero_grad(set_to_none=True)
        part = self._backward(mine, len(taken)) if len(mine) else 0.0
        loss, *sums = self.parallel.reduce(part, *wishes)
        if not math.isfinite(loss):
            raise TrainingError(
                "the loss is not finite", seen=f"{loss} at step {self.number}", remedy="lower train.learning_rate"
            )
        self.optimizer.step()
        self.number, self.place = self.number + 1, after
        return Step(self.number, loss, len(taken)), sums

    def state(self, **facts: Any) -> TrainState:
        """The run at this step boundary; the tensors are the living ones."""
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
        """Go on from `state`.

        Raises:
            TrainingError: its weights are of another network.
        """
        try:
            self.network.load_state_dict(state.weights)
        except RuntimeError as error:
            raise TrainingError("the checkpoint is of another network", seen=" ".join(str(error).split())) from None
        self.optimizer.load_state_dict(state.optimizer)
        torch.set_rng_state(state.rng)
        self.number, self.place = state.step, Place(state.epoch, state.position)

    def synchronise(self, group: Group | None) -> None:
        """Be one of `group` from now on, with rank 0's weights, optimizer and place. All of the group call this."""
        self.parallel.regroup(group)
        self.restore(TrainState(**from_first(vars(self.state()), group, self._device)))

    def _backward(self, mine: torch.Tensor, samples: int) -> float:
        """Gradients of this worker's part of the step's mean loss; returns the part."""
        predictions = self.network(*(feature[mine].to(self._device) for feature in self._features))
        predictions = predictions if isinstance(predictions, tuple) else (predictions,)
        loss = self._recipe.loss(predictions, self._target[mine].to(self._device)) * (len(mine) / samples)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _set_learning_rates(self) -> None:
        """Cosine decay to zero over the run, without restarts (Loshchilov and Hutter, SGDR, 2017)."""
        factor = 0.5 * (1 + math.cos(math.pi * self.number / self.total_steps))
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor


def run(
    trainee: Trainee,
    *,
    save: Callable[[Step], None],
    tell: Callable[[Step], None] = lambda _: None,
    should_yield: Callable[[], bool] = lambda: False,
    checkpoint_every_s: float = 30.0,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Step until all epochs are done, or rank 0 is asked to yield.

    `save` is called on every worker, at the same steps on all: when rank 0's clock says so, before yielding, and at the
    end. `tell` hears of every step and `should_yield` is asked before it, both on rank 0 alone.
    """
    saved_at = clock()
    leads = trainee.parallel.rank == 0
    while not trainee.finished:
        # Rank 0's wishes travel with the gradients, so that all workers act on them after the same step.
        yields, due = leads and should_yield(), leads and clock() - saved_at >= checkpoint_every_s
        step, (yields_agreed, due_agreed) = trainee.step(yields, due)
        if leads:
            tell(step)
        if yields_agreed or due_agreed or trainee.finished:
            save(step)
            saved_at = clock()
        if yields_agreed and not trainee.finished:
            return Outcome(End.YIELDED, trainee.number)
    return Outcome(End.FINISHED, trainee.number)


def _tensor(name: str, rows: Mapping[str, npt.NDArray[Any]]) -> torch.Tensor:
    try:
        # Arrays from Arrow are read-only, which torch can't express; those are copied.
        return torch.from_numpy(np.require(rows[name], requirements=["C", "W"]))
    except TypeError:
        raise RecipeError(
            f"{name} can't become a tensor",
            seen=rows[name].dtype,
            allowed="numbers and booleans",
            remedy="give texts numbers in the preprocessing, and a class label in the source",
        ) from None
