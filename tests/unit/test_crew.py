"""Live members, as threads: they join, leave, fail, die, park, and the run ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from crews import STEPS, Pace, Stage, Studied, applied, same
from tidepool import checkpoint
from tidepool.errors import TrainingError


@pytest.fixture
def pace() -> Pace:
    return Pace()


@pytest.fixture
def stage(tmp_path: Path, pace: Pace) -> Iterator[Stage]:
    stage = Stage(tmp_path, pace)
    stage.thread.start()
    yield stage
    pace.let_go()
    stage.crew.move({"a": 1})
    stage.thread.join(60)


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    trainee = Studied(lambda _: None)
    for _ in range(STEPS):
        trainee.step()
    return dict(trainee.network.state_dict())


def test_members_join_and_leave_at_step_boundaries(stage: Stage, pace: Pace, alone: dict[str, torch.Tensor]) -> None:
    stage.move({"a": 4})
    pace.go_to(20)
    pause_s, redone = stage.move({"a": 2})
    assert 0 < pause_s < 30
    assert redone == 0
    assert [hand.dismissed for hand in stage.hands] == [False, False, True, True]
    pause_s, redone = stage.move({"a": 2, "b": 1})
    assert 0 < pause_s < 30
    assert redone == 0
    assert same(stage.finish(), alone)
    assert len(stage.hands) == 5
    assert applied(stage.hands[0]) == list(range(1, STEPS + 1)), "it stayed, and made every step once"
    assert applied(stage.hands[4])[-1] == STEPS


def test_a_run_parks_at_zero_and_resumes_elsewhere(stage: Stage, pace: Pace, alone: dict[str, torch.Tensor]) -> None:
    stage.move({"a": 2})
    pace.go_to(20)
    stage.move({}, training=False)
    parked = checkpoint.latest(stage.checkpoints)
    assert parked is not None
    assert parked.step >= 20
    assert stage.move({"b": 3}) == (0, 0)
    assert same(stage.finish(), alone)
    assert applied(stage.hands[2])[0] == parked.step + 1


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_after_a_death_the_others_go_on_from_where_they_are(
    stage: Stage, pace: Pace, alone: dict[str, torch.Tensor], rank: int
) -> None:
    stage.move({"a": 3})
    pace.deaths.add((rank, 30))
    _, redone = stage.comes_to({"a": 2})
    assert redone == 0
    stage.move({"a": 3})
    assert same(stage.finish(), alone)
    assert not pace.deaths
    assert len(stage.hands) == 4
    steps = sorted(applied(stage.hands[(rank + 1) % 3]))
    assert steps == list(range(1, STEPS + 1))


def test_if_all_die_the_run_goes_on_from_the_last_checkpoint_and_says_what_is_redone(
    stage: Stage, pace: Pace, alone: dict[str, torch.Tensor]
) -> None:
    stage.move({"a": 1})
    pace.go_to(20)
    stage.move({}, training=False)
    parked = checkpoint.latest(stage.checkpoints)
    assert parked is not None
    stage.move({"a": 1})
    pace.go_to(40)
    stage.furthest = 40
    pace.deaths.add((0, 41))
    stage.comes_to({}, training=False)
    furthest = stage.furthest
    assert furthest in (40, 41), "it may have told of its last step"
    _, redone = stage.move({"b": 2})
    assert redone == furthest - parked.step
    assert same(stage.finish(), alone)


def test_a_member_that_dies_while_it_is_to_leave_keeps_nobody(stage: Stage, pace: Pace) -> None:
    stage.move({"a": 3})
    pace.deaths.add((2, pace.goal + 1))
    stage.move({"a": 1})
    stage.finish()


def test_joiners_that_are_not_wanted_any_more_are_dismissed_before_they_join(
    stage: Stage, pace: Pace, alone: dict[str, torch.Tensor]
) -> None:
    stage.move({"a": 1})
    stage.crew.move({"a": 4})
    stage.comes_to({"a": 4}, training=False)
    stage.move({"a": 1})
    assert [hand.dismissed for hand in stage.hands] == [False, True, True, True]
    assert same(stage.finish(), alone)


def test_an_error_that_does_not_come_back_costs_nothing(
    stage: Stage, pace: Pace, alone: dict[str, torch.Tensor]
) -> None:
    stage.move({"a": 2})
    pace.errors[30] = 1
    assert same(stage.finish(), alone)
    assert applied(stage.hands[0]) == list(range(1, STEPS + 1))


def test_an_error_that_comes_back_is_raised_with_its_place(stage: Stage, pace: Pace) -> None:
    stage.move({"a": 2})
    pace.errors[30] = 5
    with pytest.raises(TrainingError, match=r"failed in worker 1, step 30.*ValueError: a bug, at .*crews.py"):
        stage.finish()
    assert pace.errors[30] == 3
    assert all(hand.dismissed for hand in stage.hands)


def test_too_many_deaths_end_the_run(stage: Stage, pace: Pace) -> None:
    stage.move({"a": 5})
    pace.deaths |= {(1, step) for step in (20, 30, 40, 50)}
    with pytest.raises(TrainingError, match="training of digits failed: a worker died"):
        stage.finish()
