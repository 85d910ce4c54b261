"""A live run's supervisor between a coordinator and a crew that only count."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from desks import Desk
from tidepool.errors import TrainingError
from tidepool.pool import live, sight
from tidepool.pool.live import Changed, Supervisor
from tidepool.pool.report import Report
from tidepool.pool.state import LIVE
from tidepool.train import elastic


class Crew:
    """Is where it is told to be, at once; ends when the test says so."""

    def __init__(self) -> None:
        self.moves: list[Mapping[str, int]] = []
        self.news = threading.Condition()
        self.over = False
        self.error: TrainingError | None = None

    def move(self, places: Mapping[str, int]) -> None:
        with self.news:
            self.moves.append(places)
            self.news.notify_all()

    def train(self, changed: Changed) -> None:
        heard = 0
        while True:
            with self.news:
                self.news.wait_for(lambda: self.over or len(self.moves) > heard)  # noqa: B023
                if self.over:
                    break
                heard, places = len(self.moves), self.moves[-1]
            changed(places, False, 0.0, 0)
            changed(places, bool(places), 0.25 if places else 0.0, 0)
        if self.error:
            raise self.error

    def end(self, error: TrainingError | None = None) -> None:
        with self.news:
            self.over, self.error = True, error
            self.news.notify_all()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def crew() -> Crew:
    return Crew()


def supervised(crew: Crew, desk: Desk) -> threading.Thread:
    report = Report("run", "job", "slot", 0, 4, since=0.0, live=True, costs=LIVE)
    thread = threading.Thread(target=Supervisor(report, crew, desk).train)
    thread.start()
    return thread


def test_a_live_run_is_where_the_coordinator_says_and_reports_what_it_cost(crew: Crew, desk: Desk) -> None:
    thread = supervised(crew, desk)
    for places in ({"a": 4}, {"a": 2}, {"a": 2, "b": 1}):
        desk.want(**places)
        report = desk.hears_of(places)
    assert report.costs.grow_pause_s == report.pause_s == 0.25
    assert 0 < report.costs.release_s < 30
    assert report.costs.release_s != LIVE.release_s
    desk.want()
    desk.hears_of({}, training=False)
    crew.end()
    thread.join(10)
    assert desk.left == ["run"]
    assert [report.number for report in desk.reports] == list(range(1, len(desk.reports) + 1))


def test_a_live_run_stays_as_it_is_while_nobody_answers(crew: Crew, desk: Desk) -> None:
    thread = supervised(crew, desk)
    desk.want(a=4)
    desk.hears_of({"a": 4})
    desk.broken = True
    desk.want()
    crew.end()
    thread.join(10)
    assert desk.reports[-1].places == {"a": 4}


def test_a_failure_of_a_live_run_is_raised_and_it_leaves_the_pool(crew: Crew, desk: Desk) -> None:
    crew.end(TrainingError("the loss is not finite"))
    with pytest.raises(TrainingError, match="not finite"):
        Supervisor(Report("run", "job", "slot", 0, 4, since=0.0), crew, desk).train()
    assert desk.left == ["run"]


def test_the_pool_knows_both_ways_and_a_members_name() -> None:
    assert isinstance(Crew(), live.Training)
    assert issubclass(elastic.Live, live.Training)
    assert not issubclass(elastic.Segments, live.Training)
    assert sight.MEMBER == elastic.MEMBER
