"""The training loop, without Ray: one worker, or several as threads over gloo."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tidepool.errors import RecipeError, TrainingError
from tidepool.recipes.digits import Digits
from tidepool.spec import TrainSpec
from tidepool.train.loop import End, Outcome, Step, Trainee, run

SPEC = TrainSpec(epochs=2, global_batch_size=8, learning_rate=0.1)
T = TypeVar("T")


class Regularised(Digits):
    """Digits with what makes workers differ: noise of their own, running means, and a layer that is left out."""

    def network(self) -> torch.nn.Module:
        """64 -> hidden -> 10, normalised, and with dropout."""

        class Network(torch.nn.Sequential):
            def __init__(self, hidden: int) -> None:
                super().__init__(torch.nn.Linear(64, hidden), torch.nn.BatchNorm1d(hidden), torch.nn.Dropout(0.5))
                self.head, self.unused = torch.nn.Linear(hidden, 10), torch.nn.Linear(3, 3)

            def forward(self, pixels: torch.Tensor) -> torch.Tensor:
                return self.head(self[2](self[1](self[0](pixels))))

        return Network(self.hidden)


class TwoRates(Digits):
    """Digits whose output layer learns at a tenth of the rate."""

    def optimizer(self, network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """SGD in two groups."""
        first, _, last = network
        slow = {"params": last.parameters(), "lr": learning_rate / 10}
        return torch.optim.SGD([{"params": first.parameters()}, slow], lr=learning_rate)


def rows(count: int = 29) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"pixels": rng.random((count, 64), np.float32), "label": rng.integers(0, 10, count)}


def make(recipe: Digits | None = None, spec: TrainSpec = SPEC) -> Trainee:
    return Trainee(recipe or Digits(hidden=8), spec, rows())


def in_threads(size: int, work: Callable[[Any], T]) -> list[T]:
    """`work(group)` in `size` threads, each with its gloo group; the results in rank order."""
    store, results, errors = dist.HashStore(), dict[int, T](), list[Exception]()

    def member(rank: int) -> None:
        try:
            group = dist.ProcessGroupGloo(dist.PrefixStore("group", store), rank, size, timedelta(seconds=20))
            results[rank] = work(group)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors, errors
    return [results[rank] for rank in range(size)]


def together(size: int, work: Callable[[Trainee], T], trainees: list[Trainee] | None = None) -> list[T]:
    """`work(trainee)` in `size` threads whose trainees form a group. Made one by one: threads share torch's seed."""
    members = trainees or [make() for _ in range(size)]

    def join(group: Any) -> T:
        members[group.rank()].synchronise(group)
        return work(members[group.rank()])

    return in_threads(size, join)


def losses(trainee: Trainee, steps: int = 99) -> list[float]:
    found: list[float] = []
    while not trainee.finished and len(found) < steps:
        found.append(trainee.step()[0].loss)
    return found


def weights(trainee: Trainee) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainee.network.state_dict().items()}


def same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_takes_the_steps_that_it_announced_and_learns() -> None:
    trainee, saved, told = make(), list[int](), list[Step]()
    outcome = run(trainee, save=lambda step: saved.append(step.number), tell=told.append)
    assert outcome == Outcome(End.FINISHED, 8)
    assert trainee.total_steps == 8
    assert saved == [8]
    assert [step.samples for step in told] == [8, 8, 8, 5] * 2
    assert sum(step.loss for step in told[4:]) < sum(step.loss for step in told[:4])


@pytest.mark.parametrize("recipe", [Digits(hidden=8), Regularised(hidden=8)])
def test_a_restored_run_ends_with_the_same_bits(recipe: Digits) -> None:
    undisturbed, first, second = make(recipe), make(recipe), make(recipe)
    losses(undisturbed)
    losses(first, steps=3)
    second.restore(first.state())
    losses(second)
    assert same_bits(weights(second), weights(undisturbed))


def test_checkpoints_come_when_the_clock_says_so() -> None:
    now, saved = [0.0], list[int]()

    def tick(step: Step) -> None:
        now[0] = float(step.number)

    run(
        make(), save=lambda step: saved.append(step.number), tell=tick, clock=lambda: now[0], checkpoint_every_s=3.0
    )  # fmt: skip
    assert saved == [4, 8]


def test_a_run_yields_after_the_step_with_its_state_saved() -> None:
    trainee, saved = make(), list[int]()
    outcome = run(trainee, save=lambda step: saved.append(step.number), should_yield=lambda: trainee.number == 2)
    assert outcome == Outcome(End.YIELDED, 3)
    assert saved == [3]


def test_a_notice_in_the_last_step_lets_the_run_finish() -> None:
    trainee = make()
    outcome = run(trainee, save=lambda _: None, should_yield=lambda: trainee.number == trainee.total_steps - 1)
    assert outcome == Outcome(End.FINISHED, 8)


@pytest.mark.parametrize("size", [2, 3])
def test_any_number_of_workers_learns_the_same(size: int) -> None:
    alone = make()
    expected = losses(alone)
    for found, learned in together(size, lambda trainee: (losses(trainee), weights(trainee))):
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for name, tensor in weights(alone).items():
            torch.testing.assert_close(learned[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_worker_without_a_sample_in_a_step_does_no_harm() -> None:
    """Batches of 2 over 3 workers: one share is always empty."""
    spec = SPEC.model_copy(update={"global_batch_size": 2})
    expected = losses(make(spec=spec), steps=4)
    for found in together(3, lambda trainee: losses(trainee, steps=4), [make(spec=spec) for _ in range(3)]):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_number_of_workers_may_change_after_any_step() -> None:
    """1 -> 3 -> 2, the newcomers empty-handed: they take weights, momentum and place from rank 0."""
    expected, members = losses(make()), [make() for _ in range(3)]
    found = losses(members[0], steps=2)
    found += together(3, lambda trainee: losses(trainee, steps=3), members)[0]
    found += together(2, losses, members[:2])[0]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_all_workers_save_and_yield_at_the_same_step() -> None:
    """Only rank 0 is asked, and only its clock counts."""

    def member(trainee: Trainee) -> tuple[Outcome, list[int]]:
        saved: list[int] = []
        leads = trainee.parallel.rank == 0
        outcome = run(
            trainee,
            save=lambda step: saved.append(step.number),
            should_yield=lambda: trainee.number >= 4,
            clock=lambda: float(trainee.number) if leads else 0.0,
            checkpoint_every_s=2.0,
        )
        return outcome, saved

    assert together(2, member) == [(Outcome(End.YIELDED, 5), [3, 5])] * 2


def test_running_means_are_those_of_rank_0_on_all_workers() -> None:
    def member(trainee: Trainee) -> list[torch.Tensor]:
        losses(trainee, steps=3)
        trainee.parallel.align()
        return [buffer.clone() for buffer in trainee.network.buffers()]

    first, second = together(2, member, [make(Regularised(hidden=8)) for _ in range(2)])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_the_rate_falls_as_a_cosine_and_every_group_of_the_optimizer_keeps_its_own() -> None:
    trainee = make(TwoRates(hidden=8))
    losses(trainee, steps=5)
    half = 0.5 * (1 + np.cos(np.pi * 4 / 8))
    assert [group["lr"] for group in trainee.optimizer.param_groups] == pytest.approx([0.1 * half, 0.01 * half])


def test_a_loss_that_is_not_finite_ends_the_run_with_the_weights_untouched() -> None:
    broken = rows()
    broken["pixels"][:] = np.nan
    trainee = Trainee(Digits(hidden=8), SPEC, broken)
    before = weights(trainee)
    with pytest.raises(TrainingError, match=r"not finite.*learning_rate"):
        trainee.step()
    assert same_bits(before, weights(trainee))


def test_a_target_of_texts_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="label can't become a tensor"):
        Trainee(Digits(hidden=8), SPEC, rows() | {"label": np.array([b"cat"] * 29, np.object_)})


def test_read_only_rows_are_taken() -> None:
    given = rows()
    given["pixels"].flags.writeable = False
    assert np.isfinite(losses(Trainee(Digits(hidden=8), SPEC, given))).all()


def test_the_checkpoint_of_another_network_is_refused() -> None:
    with pytest.raises(TrainingError, match="another network"):
        make().restore(make(Digits(hidden=9)).state())
