"""A run's supervisor between a coordinator and a training that only count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import pytest

from desks import Desk
from tidepool.errors import TrainingError
from tidepool.pool.report import Report
from tidepool.pool.segments import Supervisor

STEPS = 1000


class Counting:
    """A training whose steps happen when the test lets them."""

    def __init__(self) -> None:
        self.done = self.goal = 0
        self.sizes: list[int] = []
        self.noticed: set[int] = set()
        self.wake = threading.Condition()

    def segment(self, number: int, places: Mapping[str, int], began: Callable[[int], None]) -> int | None:
        began(self.done)
        with self.wake:
            self.sizes.append(sum(places.values()))
            self.wake.notify_all()
        while self.done < STEPS:
            with self.wake:
                self.wake.wait_for(lambda: number in self.noticed or self.done < self.goal)
                if number in self.noticed:
                    return self.done
                self.done += 1
                self.wake.notify_all()
        return None

    def go_to(self, step: int) -> None:
        with self.wake:
            self.goal = step
            self.wake.notify_all()
            assert self.wake.wait_for(lambda: self.done == step, timeout=10)

    def notice(self, number: int) -> None:
        with self.wake:
            self.noticed.add(number)
            self.wake.notify_all()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def training() -> Counting:
    return Counting()


def supervised(training: Counting, desk: Desk) -> threading.Thread:
    supervisor = Supervisor(Report("run", "job", "slot", 0, 4, since=0.0), training, desk)
    thread = threading.Thread(target=supervisor.train)
    thread.start()
    return thread


def test_a_run_goes_through_sizes_parks_and_ends(training: Counting, desk: Desk) -> None:
    thread = supervised(training, desk)
    desk.want(a=4)
    desk.hears(lambda report: report.training)
    training.go_to(100)
    desk.want(a=2)
    shrunk = desk.hears(lambda report: report.training and report.places == {"a": 2})
    assert shrunk.steps_redone == 0
    assert shrunk.costs.shrink_pause_s == shrunk.pause_s < 1
    assert shrunk.costs.release_s < 1
    desk.want()
    desk.hears(lambda report: not report.places)
    desk.want(b=1)
    desk.hears(lambda report: report.training and report.places == {"b": 1})
    training.go_to(STEPS)
    thread.join(10)
    assert training.done == STEPS
    assert training.sizes == [4, 2, 1]
    assert desk.left == ["run"]
    assert [report.number for report in desk.reports] == list(range(1, len(desk.reports) + 1))


def test_training_goes_on_while_nobody_answers(training: Counting, desk: Desk) -> None:
    thread = supervised(training, desk)
    desk.want(a=1)
    desk.hears(lambda report: report.training)
    desk.broken = True
    training.go_to(STEPS)
    thread.join(10)
    assert training.sizes == [1]
    assert training.done == STEPS


def test_a_failure_of_training_is_raised_and_the_run_leaves_the_pool(desk: Desk) -> None:
    class Failing(Counting):
        def segment(self, number: int, places: Mapping[str, int], began: Callable[[int], None]) -> int | None:
            raise TrainingError("the loss is not finite")

    desk.want(a=1)
    with pytest.raises(TrainingError, match="not finite"):
        Supervisor(Report("run", "job", "slot", 0, 4, since=0.0), Failing(), desk).train()
    assert desk.left == ["run"]


def test_lost_steps_are_reported(desk: Desk) -> None:
    class Forgetful(Counting):
        def segment(self, number: int, places: Mapping[str, int], began: Callable[[int], None]) -> int | None:
            after = super().segment(number, places, began)
            self.done -= 3 if after is not None else 0
            return after

    training = Forgetful()
    thread = supervised(training, desk)
    desk.want(a=2)
    desk.hears(lambda report: report.training)
    training.go_to(50)
    desk.want(a=1)
    assert desk.hears(lambda report: report.training and report.places == {"a": 1}).steps_redone == 3
    training.go_to(STEPS)
    thread.join(10)
