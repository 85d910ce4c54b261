"""How busy a replica says that it is."""

from __future__ import annotations

import time

import pytest

from tidepool.serve.vitals import Vitals, wanted_s


class Times:
    """A clock and a processor's, set by hand."""

    wall = 10.0
    used = 3.0


def test_the_busier_of_event_loop_and_engine_counts_since_the_last_sample() -> None:
    times = Times()
    vitals = Vitals(0.1, lambda: times.wall, lambda: times.used)
    times.wall, times.used = 12.0, 3.5
    assert vitals.sample(1.5, backlog_s=0.0, asked=1, arrived=1) == {
        "busy": pytest.approx(0.75),
        "late": 0.0,
        "arriving": pytest.approx(0.5),
    }
    times.wall, times.used = 13.0, 3.9
    then = vitals.sample(1.5, backlog_s=0.05, asked=1, arrived=4)
    assert (then["busy"], then["late"], then["arriving"]) == pytest.approx((0.4, 0.5, 3.0))


def test_a_version_that_has_gone_takes_no_arrivals_back() -> None:
    vitals = Vitals(0.1, processor_s=lambda: 0.0)
    vitals.sample(0.0, 0.0, asked=9, arrived=9)
    assert vitals.sample(0.0, 0.0, asked=2, arrived=2)["arriving"] == 0


def test_no_replica_is_more_than_busy() -> None:
    times = Times()
    vitals = Vitals(0.1, lambda: times.wall, lambda: times.used)
    times.wall = 11.0
    assert vitals.sample(5.0, backlog_s=0.0, asked=9, arrived=9)["busy"] == 1.0


def test_who_is_asked_nothing_is_not_busy() -> None:
    times = Times()
    vitals = Vitals(0.1, lambda: times.wall, lambda: times.used)
    times.wall, times.used = 11.0, 3.1
    assert vitals.sample(0.0, 0.0, asked=0, arrived=0)["busy"] == 0.0
    times.wall, times.used = 12.0, 3.2
    assert vitals.sample(0.5, 0.0, asked=0, arrived=0)["busy"] == pytest.approx(0.5)  # it goes on with what it has


def test_two_samples_at_once_do_no_harm() -> None:
    vitals = Vitals(0.1, lambda: 1.0, lambda: 1.0)
    assert vitals.sample(0.0, 0.0, 0, 0) == {"busy": 0.0, "late": 0.0, "arriving": 0.0}


def test_a_thread_that_works_wants_a_processor() -> None:
    began, before = time.monotonic(), wanted_s()
    while time.monotonic() - began < 0.05:
        pass
    assert 0.02 < wanted_s() - before <= time.monotonic() - began + 0.02
