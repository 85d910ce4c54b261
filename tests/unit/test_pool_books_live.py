"""The coordinator's books of live runs, whose members come and go one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pools import SPEC, Cluster, Crew, Trainee, wave
from tidepool.pool.books import Books
from tidepool.pool.ledger import Ledger
from tidepool.pool.report import Report
from tidepool.pool.state import LIVE

Entries = Callable[[], list[tuple[str, str]]]


@pytest.fixture
def crew(books: Books, cluster: Cluster) -> Crew:
    """A live run with four members."""
    crew = Crew(books, cluster)
    crew.go_on()
    assert crew.target == {"a": 4}
    assert crew.report.training
    return crew


def test_members_of_a_live_run_leave_for_replicas_and_the_others_stay(
    books: Books, cluster: Cluster, crew: Crew, entries: Entries
) -> None:
    wave(books, cluster, 2)
    assert crew.target == {"a": 2}
    crew.processes["a"] = 2
    crew.say(places={"a": 2}, training=False)
    assert entries()[1] == ("shrink", "released")
    crew.say(training=True, pause_s=0.05)
    assert entries()[1:] == [("shrink", "done"), ("grant", "done"), ("grant", "done")]
    assert (books.pool.run("run").workers, books.pool.run("run").state) == ({"a": 2}, "running")


def test_a_live_run_grows_when_there_is_room_and_says_when_all_train(
    books: Books, cluster: Cluster, crew: Crew, entries: Entries
) -> None:
    wave(books, cluster, 2)
    crew.go_on()
    wave(books, cluster, 0)
    cluster.now += SPEC.hold_s
    crew.say()
    assert crew.target == {"a": 4}
    crew.heed()
    assert entries()[-1] == ("grow", "granted")
    assert books.pool.run("run").state == "starting"
    crew.start()
    assert entries()[-1] == ("grow", "done")
    assert books.pool.run("run").state == "running"


def test_a_live_run_parks_and_resumes(books: Books, cluster: Cluster, crew: Crew, entries: Entries) -> None:
    wave(books, cluster, 4)
    crew.go_on()
    assert entries()[1] == ("park", "done")
    assert books.pool.run("run").state == "parked"
    wave(books, cluster, 0)
    cluster.now += SPEC.hold_s
    crew.say()
    crew.go_on()
    assert entries()[-1] == ("resume", "done")
    assert crew.processes == {"a": 4}


def test_a_member_that_ray_still_knows_is_not_gone(books: Books, cluster: Cluster, crew: Crew) -> None:
    wave(books, cluster, 2)
    crew.say(places={"a": 2}, training=False)
    crew.say(training=True)
    assert [reservation.awaited for reservation in books.pool.reservations] == [1, 1]
    assert books.pool.run("run").workers == {"a": 4}
    crew.processes["a"] = 3
    books.settle()
    assert books.pool.run("run").workers == {"a": 3}
    crew.processes["a"] = 2
    books.settle()
    assert books.pool.run("run").workers == {"a": 2}


def test_replicas_may_stand_where_members_were_before_the_supervisor_speaks(
    books: Books, cluster: Cluster, crew: Crew, entries: Entries
) -> None:
    wave(books, cluster, 2)
    crew.processes["a"] = 2
    books.settle()
    books.settle()
    assert entries()[1:] == [("shrink", "released"), ("grant", "done"), ("grant", "done")]
    crew.say(places={"a": 2}, training=True)
    assert entries()[1] == ("shrink", "done")


def test_a_dead_member_gives_its_place_back_and_gets_a_successor(
    books: Books, cluster: Cluster, crew: Crew, entries: Entries
) -> None:
    crew.die("a")
    assert books.pool.run("run").workers["a"] == 3 or entries()[-1][0] == "grow"
    cluster.now += 2
    crew.say(training=True)
    crew.go_on()
    assert entries()[-1] == ("grow", "done")
    assert crew.processes == {"a": 4}


def test_a_live_run_below_its_minimum_yields_what_is_left(books: Books, cluster: Cluster) -> None:
    crew = Crew(books, cluster, least=3, most=3)
    crew.go_on()
    crew.die("a")
    assert crew.target == {}
    crew.go_on()
    cluster.now += 2
    crew.say()
    crew.go_on()
    assert crew.processes == {"a": 3}
    assert books.pool.run("run").state == "running"


def test_a_live_run_that_lost_an_answer_starts_nothing(books: Books, cluster: Cluster) -> None:
    crew = Crew(books, cluster)
    assert books.tell(crew.report) == {"a": 4}
    books.report(crew.report, {})
    books.settle()
    cluster.now += 2
    books.settle()
    crew.go_on()
    assert crew.processes == {"a": 4}


def test_a_restarted_coordinator_leaves_a_live_run_as_it_is(
    books: Books, cluster: Cluster, crew: Crew, tmp_path: Path
) -> None:
    again = Books("slot", Ledger(tmp_path / "ledger.jsonl", cluster.clock), cluster.look, SPEC, cluster.clock)
    again.report(crew.report, crew.report.places)
    assert again.target("run") == {"a": 4}
    again.settle()
    assert again.target("run") == {"a": 4}


def test_the_next_driver_of_a_run_is_heard_when_the_last_process_of_the_one_before_is_gone(
    books: Books, cluster: Cluster, crew: Crew
) -> None:
    processes, crew.processes = crew.processes, Counter()
    crew.report = Report("run", "job-2", "slot", 0, 4, since=cluster.now, live=True, costs=LIVE)
    crew.say()
    assert crew.target == {}
    processes.clear()
    crew.say()
    crew.say()
    assert crew.target == {"a": 4}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_to_live_runs_nothing_is_held_twice_and_the_pool_comes_to_rest(
    seed: int, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    cluster = Cluster(a=4, b=4)
    books = Books("slot", Ledger(tmp_path / "ledger.jsonl", cluster.clock), cluster.look, SPEC, cluster.clock)
    runs = [Crew(books, cluster, "one", 0, 6), Crew(books, cluster, "two", 2, 6)]
    segments = Trainee(books, cluster, "three", 0, 2)
    for _ in range(150):
        cluster.now += dice.uniform(0.1, 3)
        crew = dice.choice(runs)
        match dice.randrange(7):
            case 0:
                wave(books, cluster, dice.randrange(9))
            case 1:
                crew.die(dice.choice("ab"))
            case 2:
                crew.heed()
            case 3:
                crew.start()
            case 4:
                segments.end_segment() if segments.report.places else segments.target and segments.start()
            case _:
                crew.go_on()
        for run in (*runs, segments):
            books.report(run.report, run.report.places or run.target)
        books.settle()  # a Snapshot that promises or holds anything twice can't be made
    for _ in range(100):
        cluster.now += 2
        wave(books, cluster, 3)
        for run in runs:
            run.go_on()
            run.say()
        if segments.report.places and segments.target != segments.report.places:
            segments.end_segment()
        elif segments.target and not segments.report.places:
            segments.start()
        segments.say()
    assert cluster.replicas["app"].total() == 3
    held = [*cluster.members.values(), *cluster.workers.values()]
    assert sum(places.total() for places in held) == 5, books.pool
    for run in runs:
        assert Counter(books.pool.run(run.report.run).workers) == +run.processes
