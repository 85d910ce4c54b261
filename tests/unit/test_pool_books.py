"""The coordinator's books: what is promised, what is confirmed, what is set right."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pools import SPEC, Cluster, Trainee, wave
from tidepool.pool.books import GRACE_S, LAPSE_S, Books
from tidepool.pool.ledger import Ledger
from tidepool.pool.state import App

Entries = Callable[[], list[tuple[str, str]]]


def started(books: Books, cluster: Cluster, least: int = 0) -> Trainee:
    run = Trainee(books, cluster, least=least)
    run.start()
    return run


def test_a_run_gets_what_nobody_else_wants(books: Books, cluster: Cluster, entries: Entries) -> None:
    run = Trainee(books, cluster)
    assert run.target == {"a": 4}
    run.start()
    assert run.target == {"a": 4}
    assert entries() == [("resume", "done")]


def test_a_wave_takes_some_and_the_run_goes_on_with_the_rest(books: Books, cluster: Cluster, entries: Entries) -> None:
    run = started(books, cluster)
    wave(books, cluster, 2)
    assert run.target == {"a": 2}
    assert entries()[1:] == [("shrink", "promised"), ("grant", "promised"), ("grant", "promised")]
    run.end_segment()
    assert entries()[1] == ("shrink", "released")
    books.settle()
    assert entries()[2:] == [("grant", "done"), ("grant", "done")]
    assert run.target == {"a": 2}
    run.start()
    assert entries()[1] == ("shrink", "done")
    assert books.pool.app("app").running == {"a": 2}


def test_nothing_is_promised_where_a_process_still_is(books: Books, cluster: Cluster) -> None:
    run = started(books, cluster)
    wave(books, cluster, 2)
    run.end_segment(at_once=False)  # the supervisor says so, but Ray still knows the processes
    assert run.target == {}
    assert [reservation.awaited for reservation in books.pool.reservations] == [1, 1]
    cluster.workers.clear()
    books.settle()
    assert run.target == {"a": 2}


def test_what_ray_takes_back_or_is_starting_is_not_lost(books: Books, cluster: Cluster, entries: Entries) -> None:
    run = started(books, cluster)
    books.want(App("app", wanted=2))
    books.settle()
    cluster.late["a"] = 4
    run.end_segment()
    assert entries()[1:] == [("shrink", "promised"), ("grant", "promised"), ("grant", "promised")]
    cluster.late["a"] = 0
    cluster.starting["app"] = 2
    books.settle()
    assert entries()[1:] == [("shrink", "released"), ("grant", "promised"), ("grant", "promised")]
    assert run.target == {"a": 2}


def test_replicas_may_be_there_before_the_supervisor_speaks(books: Books, cluster: Cluster, entries: Entries) -> None:
    run = started(books, cluster)
    books.settle()
    wave(books, cluster, 2)
    cluster.workers.clear()
    books.settle()
    books.settle()
    assert entries()[1:] == [("shrink", "released"), ("grant", "done"), ("grant", "done")]
    run.end_segment()
    assert run.target == {"a": 2}
    run.start()
    assert entries()[1] == ("shrink", "done")


def test_a_run_parks_at_zero_and_resumes_after_the_wave(books: Books, cluster: Cluster, entries: Entries) -> None:
    run = started(books, cluster)
    wave(books, cluster, 4)
    assert run.target == {}
    run.end_segment()
    books.settle()
    assert run.target == {}
    assert books.pool.app("app").running == {"a": 4}
    assert entries()[1] == ("park", "done")
    wave(books, cluster, 0)
    assert run.target == {}, "what serving gives back is held a while"
    cluster.now += SPEC.hold_s
    run.say()
    assert run.target == {"a": 4}
    run.start()
    assert books.pool.run("run").state == "running"


def test_a_run_that_may_not_be_parked_keeps_its_minimum(books: Books, cluster: Cluster) -> None:
    run = started(books, cluster, least=1)
    wave(books, cluster, 4)
    assert run.target == {"a": 1}


def test_accelerators_that_others_hold_are_not_handed_out(books: Books, cluster: Cluster) -> None:
    cluster.workers["somebody"] = Counter(a=3)
    assert Trainee(books, cluster).target == {"a": 1}


def test_a_place_that_was_taken_is_not_waited_for(books: Books, cluster: Cluster) -> None:
    run = started(books, cluster)
    wave(books, cluster, 2)
    cluster.pending["app"] = 3  # Serve asks Ray for one that the pool didn't promise
    run.end_segment()
    books.settle()
    assert books.pool.app("app").running == {"a": 3}
    cluster.now += SPEC.hold_s
    run.say()
    assert sum(run.target.values()) <= 1


def test_a_lost_answer_promises_nothing_for_ever(books: Books, cluster: Cluster) -> None:
    run = Trainee(books, cluster)
    assert books.tell(run.report) == {"a": 4}
    books.report(run.report, {})  # it asks again as if it had heard nothing
    books.settle()
    assert books.tell(run.report) == {"a": 4}
    wave(books, cluster, 4)
    books.report(run.report, {})
    books.settle()
    books.settle()
    assert run.target == {}


def test_a_supervisor_that_died_frees_nothing_before_its_processes_are_gone(books: Books, cluster: Cluster) -> None:
    started(books, cluster)
    cluster.now += LAPSE_S + 1
    books.settle()
    assert books.pool.run("run").workers == {"a": 4}
    cluster.workers.clear()
    books.settle()
    assert not books.pool.runs


def test_a_lost_node_takes_its_workers_with_it(tmp_path: Path) -> None:
    cluster = Cluster(a=2, b=2)
    books = Books("slot", Ledger(tmp_path / "ledger.jsonl", cluster.clock), cluster.look, SPEC, cluster.clock)
    cluster.now += GRACE_S
    run = started(books, cluster)
    assert run.target == {"a": 2, "b": 2}
    del cluster.nodes["b"]
    books.settle()
    assert run.target == {"a": 2}


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_nothing_is_held_twice_and_the_pool_comes_to_rest(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    cluster = Cluster(a=4, b=4)
    books = Books("slot", Ledger(tmp_path / "ledger.jsonl", cluster.clock), cluster.look, SPEC, cluster.clock)
    runs = [Trainee(books, cluster, name, least, 6) for name, least in (("one", 0), ("two", 1))]

    def go_on(run: Trainee) -> None:
        if not run.report.places:
            if run.target:
                run.start()
        elif run.target != run.report.places:
            run.end_segment(at_once=dice.random() < 0.7)
        else:
            run.say()

    for _ in range(120):
        cluster.now += dice.uniform(0.1, 3)
        match dice.randrange(4):
            case 0:
                wave(books, cluster, dice.randrange(9))
            case 1:
                for run in runs:
                    if not run.report.places:
                        cluster.workers.pop(run.report.job, None)
            case _:
                go_on(dice.choice(runs))
        for run in runs:
            books.report(run.report, run.report.places or run.target)
        books.settle()  # a Snapshot that promises or holds anything twice can't be made
    for _ in range(100):
        cluster.now += 2
        wave(books, cluster, 3)
        for run in runs:
            if not run.report.places:
                cluster.workers.pop(run.report.job, None)
            go_on(run)
    assert cluster.replicas["app"].total() == 3
    assert sum(places.total() for places in cluster.workers.values()) == 5, books.pool
