"""What runs cost is learned from runs."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.serve.costs import KEPT, PROBE_RUNS, TRUSTED, Costs, calibrate

SIZES = (1, 2, 4, 8, 16, 32, 64)


def learned(seconds: Callable[[int], float], sizes: tuple[int, ...] = SIZES, repeats: int = 20) -> Costs:
    """Costs that have seen each size `repeats` times."""
    costs = Costs()
    for _ in range(repeats):
        for size in sizes:
            costs.observe(size, seconds(size))
    return costs


def affine(size: int) -> float:
    """5 ms, and 0.1 ms a row."""
    return 0.005 + 0.0001 * size


def test_nothing_is_known_before_the_first_run() -> None:
    costs = Costs()
    assert costs.seconds(8) == 0
    assert costs.best(1000) == 1
    assert costs.holding(0.1, 1000) == 1


def test_measured_sizes_are_predicted_as_measured_and_others_between_them() -> None:
    costs = learned(affine)
    for size in (*SIZES, 3, 11, 50, 100):
        assert costs.seconds(size) == pytest.approx(affine(size))


def test_pauses_do_not_spoil_the_curve_but_are_remembered_as_excess() -> None:
    rng = random.Random(0)
    costs = learned(lambda size: affine(size) + (0.1 if rng.random() < 0.1 else 0.0), repeats=200)
    assert costs.seconds(16) == pytest.approx(affine(16))
    assert costs.excess_s > 0.02
    assert costs.expected(16) > costs.seconds(16)


def test_a_slow_first_run_of_a_size_is_not_trusted() -> None:
    costs = learned(affine, sizes=(1, 2))
    costs.observe(4, 3.0)
    assert costs.seconds(4) < 0.01
    for _ in range(TRUSTED):
        costs.observe(4, affine(4))
    assert costs.seconds(4) == pytest.approx(affine(4))


def test_a_change_of_pace_is_learned_within_a_few_runs() -> None:
    costs = learned(affine)
    for _ in range(12):
        costs.observe(8, 3 * affine(8))
    assert costs.seconds(8) == pytest.approx(3 * affine(8))


def test_the_best_size_is_where_throughput_stops_to_rise() -> None:
    costs = learned(lambda size: affine(size) + 0.001 * max(0, size - 16))
    assert costs.best(1000) == 16


def test_where_size_gains_nothing_the_smallest_is_best() -> None:
    assert learned(lambda size: 0.002 * size).best(1000) == 1


def test_no_more_than_twice_the_known_is_chosen() -> None:
    costs = learned(affine, sizes=(1, 2, 4))
    assert costs.best(1000) == 8
    assert costs.holding(10.0, 1000) == 8
    assert costs.best(6) == 6


def test_two_runs_of_a_size_that_holds_the_objective_fit_into_it() -> None:
    costs = learned(affine)
    assert 2 * affine(costs.holding(0.02, 1000)) <= 0.02 < 2 * affine(64)


def test_where_pauses_alone_break_the_objective_batches_stay_useful() -> None:
    costs = learned(lambda size: 0.0001 * size)
    costs.excess_s = 10.0
    assert costs.holding(0.02, 1000) >= 48


def test_a_size_found_slow_is_tried_again_after_many_runs_of_the_next_smaller() -> None:
    costs = learned(lambda size: affine(size) if size < 64 else 1.0)
    assert costs.best(64) == 32
    for _ in range(PROBE_RUNS + 1):
        costs.observe(32, affine(32))
    assert costs.best(64) == 64


def test_draining_counts_whole_runs_and_the_rest() -> None:
    costs = learned(affine)
    costs.slowness = 1.0
    assert costs.drain(40, 16) == pytest.approx(2 * affine(16) + affine(8))
    assert costs.drain(40, 16, company=12) == pytest.approx(2 * affine(16) + affine(12))


def test_what_joining_saves_is_the_shared_fixed_cost() -> None:
    assert learned(affine).saving(8, 4) == pytest.approx(0.005 * 4 / 8)
    assert learned(lambda size: 0.001 * size).saving(8, 4) == pytest.approx(0, abs=1e-9)


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(1e-6, 10.0)), min_size=1, max_size=200))
def test_predictions_are_within_what_was_measured_and_choices_within_reach(
    runs: list[tuple[int, float]],
) -> None:
    costs = Costs()
    for size, seconds in runs:
        costs.observe(size, seconds)
    shortest, longest = min(s for _, s in runs), max(s for _, s in runs)
    for size, seconds in costs.curve():
        assert shortest <= seconds <= longest
        assert costs.seconds(size) == seconds
    assert 1 <= costs.best(100) <= 100
    assert 1 <= costs.holding(0.1, 100) <= 100
    assert [size for size, _ in costs.curve()] == sorted({size for size, _ in costs.curve()})


def test_calibration_stops_before_runs_become_too_long() -> None:
    now, ran = [0.0], list[int]()

    def run(size: int) -> None:
        ran.append(size)
        now[0] += affine(size)

    costs = Costs()
    calibrate(costs, run, largest=4096, longest_s=0.02, clock=lambda: now[0])
    assert max(ran) == 128
    assert costs.seconds(100) == pytest.approx(affine(100))


def test_a_request_of_several_rows_costs_what_they_do_and_fewer_fit_in_a_batch() -> None:
    pace = learned(affine).pace(each=4.0, limit=32)
    slowness = pace["one_s"] / affine(4)
    assert slowness == pytest.approx(1.0, abs=0.01)
    assert pace["full"] == 8
    assert pace["full_s"] == pytest.approx(affine(32), rel=0.01)
    assert learned(affine).pace(each=64.0, limit=32)["full"] == 1
    assert Costs().pace(1.0, 1) == {}


def test_pauses_are_no_reason_for_replicas() -> None:
    costs = learned(affine)
    before = costs.pace(1.0, 1)
    costs.observe(1, 30.0)
    assert costs.pace(1.0, 1) == before


def test_of_many_runs_at_once_one_a_millisecond_is_learned_from() -> None:
    costs, now = Costs(), 0.0
    for _ in range(1000):
        costs.glance(1, began=now, clock=lambda: now + 1e-4)  # noqa: B023
        now += 1e-4
    assert costs.runs == 1000
    for _ in range(3):
        costs.glance(64, began=now, clock=lambda: now + 1e-2)
    assert costs.seconds(64) == pytest.approx(1e-2)
    assert costs.seconds(1) == pytest.approx(1e-4)
    for _ in range(KEPT * 10):
        costs.glance(1, began=now, clock=lambda: now + 3e-4)  # noqa: B023
        now += 1e-3
    assert costs.seconds(1) == pytest.approx(3e-4)
