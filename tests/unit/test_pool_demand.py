"""What the pool remembers of serving's demand."""

from __future__ import annotations

import math

from tidepool.pool.demand import MEMORY_S, Demand

WAVE = Demand().then(100.0, 1.0).then(110.0, 4.0).then(120.0, 2.0)


def test_the_peak_counts_a_level_for_as_long_as_it_lasted() -> None:
    assert WAVE.peak(since=105.0) == 4.0
    assert WAVE.peak(since=119.0) == 4.0
    assert WAVE.peak(since=120.0) == 2.0
    assert Demand().peak(since=0.0) == 0.0


def test_the_least_is_zero_before_memory_begins() -> None:
    assert WAVE.least(since=110.0) == 2.0
    assert WAVE.least(since=99.0) == 0.0


def test_idle_is_the_time_since_more_was_asked_for() -> None:
    assert WAVE.idle_s(3.0, now=150.0) == 30.0
    assert WAVE.idle_s(4.0, now=150.0) == math.inf
    assert WAVE.idle_s(1.0, now=150.0) == 0.0


def test_equal_demand_adds_no_step_and_old_steps_are_forgotten() -> None:
    assert WAVE.then(130.0, 2.0) is WAVE
    late = WAVE.then(115.0 + MEMORY_S, 5.0)
    assert late.steps == ((110.0, 4.0), (120.0, 2.0), (115.0 + MEMORY_S, 5.0))
