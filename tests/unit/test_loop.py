"""The training loop, without Ray: one worker, or several as threads over gloo."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tidepool.errors import TrainingError
from tidepool.recipes.digits import Digits
from tidepool.spec import TrainSpec
from tidepool.train.loop import Outcome, Step, Trainee, run

SPEC = TrainSpec(epochs=2, global_batch_size=8, learning_rate=0.1)


def rows(count: int = 29) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"pixels": rng.random((count, 64), np.float32), "label": rng.integers(0, 10, count)}


def train(group: Any = None, spec: TrainSpec = SPEC) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The loss of each step and the final weights."""
    trainee, losses = Trainee(Digits(hidden=8), spec, rows(), group), []
    while not trainee.finished:
        losses.append(trainee.step()[0].loss)
    return losses, dict(trainee.network.state_dict())


def in_threads(size: int, work: Any) -> list[Any]:
    """`work(group)` in `size` threads, each with its gloo group; the results in rank order."""
    store = dist.HashStore()
    results: list[Any] = [None] * size

    def member(rank: int) -> None:
        group = dist.ProcessGroupGloo(dist.PrefixStore("g", store), rank, size, timedelta(seconds=20))
        results[rank] = work(group)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


@pytest.fixture
def trainee() -> Iterator[Trainee]:
    return Trainee(Digits(hidden=8), SPEC, rows())


def test_a_run_takes_the_steps_that_it_announced(trainee: Trainee) -> None:
    saved: list[int] = []
    outcome = run(trainee, save=lambda _, step: saved.append(step.number))
    assert outcome is Outcome.FINISHED
    assert trainee.number == trainee.total_steps == 8
    assert saved == [8]


def test_a_restored_run_ends_with_the_same_bits() -> None:
    _, undisturbed = train()
    first = Trainee(Digits(hidden=8), SPEC, rows())
    for _ in range(3):
        first.step()
    second = Trainee(Digits(hidden=8), SPEC, rows())
    second.restore(first.state())
    while not second.finished:
        second.step()
    for name, tensor in second.network.state_dict().items():
        assert torch.equal(tensor, undisturbed[name])


def test_checkpoints_come_when_the_clock_says_so(trainee: Trainee) -> None:
    now, saved = [0.0], []

    def tick(step: Step) -> None:
        now[0] = float(step.number)

    run(
        trainee,
        save=lambda _, step: saved.append(step.number),
        told=tick,
        clock=lambda: now[0],
        checkpoint_every_s=3.0,
    )
    assert saved == [4, 8]


def test_a_run_yields_at_the_next_step_boundary_with_its_state_saved(trainee: Trainee) -> None:
    saved: list[int] = []
    outcome = run(trainee, save=lambda _, step: saved.append(step.number), should_yield=lambda: trainee.number == 2)
    assert outcome is Outcome.YIELDED
    assert saved == [3]


def test_a_notice_in_the_last_step_lets_the_run_finish(trainee: Trainee) -> None:
    last = trainee.total_steps - 1
    outcome = run(trainee, save=lambda *_: None, should_yield=lambda: trainee.number == last)
    assert outcome is Outcome.FINISHED


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_workers_learns_the_same(size: int) -> None:
    losses, weights = train()
    for shared_losses, shared_weights in in_threads(size, train):
        np.testing.assert_allclose(shared_losses, losses, rtol=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(shared_weights[name], tensor, rtol=1e-4, atol=1e-6)


def test_all_workers_yield_at_the_same_step() -> None:
    def member(group: Any) -> tuple[Outcome, int]:
        worker = Trainee(Digits(hidden=8), SPEC, rows(), group)
        outcome = run(worker, save=lambda *_: None, should_yield=lambda: worker.number >= 2)
        return outcome, worker.number

    assert in_threads(2, member) == [(Outcome.YIELDED, 3)] * 2


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    broken = rows()
    broken["pixels"][:] = np.nan
    with pytest.raises(TrainingError, match="learning_rate"):
        Trainee(Digits(hidden=8), SPEC, broken).step()
