"""What the forecast says half a minute ahead."""

from __future__ import annotations

import numpy as np
import pytest

from tidepool.pool.forecast import ahead, in_waves, replicas_wanted, since_the_fall
from tidepool.pool.staffing import LatencyCurve, Staffing


def test_a_steady_rate_stays() -> None:
    assert ahead([5.0] * 60, 1.0, 30.0)[-1] == pytest.approx(5.0)


def test_a_rising_rate_is_met_before_it_is_there() -> None:
    rising = np.arange(60.0)
    assert ahead(rising, 1.0, 30.0)[-1] > 70


def test_a_trend_fades_instead_of_running_away() -> None:
    rising = np.arange(60.0)
    assert ahead(rising, 1.0, 3000.0)[-1] < 120


def test_a_peak_counts_for_half_a_minute() -> None:
    wave = [2.0] * 60 + [20.0] * 30 + [2.0] * 90
    said = ahead(wave, 1.0, 10.0)
    assert said[60 + 30 + 20] > 15
    assert said[-1] == pytest.approx(2.0, abs=0.5)


def test_columns_are_forecast_apart_and_as_if_alone() -> None:
    random = np.random.default_rng(0)
    both = random.poisson(5, (100, 2)).astype(float)
    said = ahead(both, 1.0, 30.0)
    np.testing.assert_allclose(said[:, 1], ahead(both[:, 1], 1.0, 30.0))


def test_the_latest_forecast_hardly_depends_on_how_long_the_history_is() -> None:
    random = np.random.default_rng(1)
    rates = random.poisson(20, 600).astype(float)
    assert ahead(rates, 1.0, 30.0)[-1] == pytest.approx(ahead(rates[-180:], 1.0, 30.0)[-1], rel=0.01)


def test_what_waits_asks_for_more_replicas() -> None:
    staffing = Staffing(LatencyCurve((1, 8), (0.1, 0.2), (0.2, 0.4)), 0.5, at_most=50)
    calm = replicas_wanted([30.0] * 60, staffing)
    assert replicas_wanted([30.0] * 60, staffing, backlog=500) > calm >= 1
    assert replicas_wanted([], staffing) == 0


def test_a_fall_beyond_chance_ends_what_was_before() -> None:
    assert since_the_fall([50.0, 50.0, 0.0], last_s=0.7) == [0.0]
    assert since_the_fall([50.0, 50.0, 20.0, 0.0], last_s=0.6) == [0.0]
    assert since_the_fall([4.0] * 30 + [0.0] * 9) == [0.0] * 8


@pytest.mark.parametrize("rates", [[], [0.0], [0.0, 9.0], [50.0, 50.0, 0.0], [50.0, 40.0, 30.0], [4.0, 0.0, 0.0]])
def test_a_fluctuation_a_rise_and_a_slow_fall_end_nothing(rates: list[float]) -> None:
    assert since_the_fall(rates, last_s=0.2) == rates


def test_waves_that_follow_one_another_are_known_from_one_wave() -> None:
    rest, wave, ebb = [1.0] * 25, [28.0, 28.0], [3.0, 2.0, 3.0]
    assert in_waves(rest + wave + ebb + wave)
    assert in_waves(rest + wave + ebb + wave + ebb)
    assert not in_waves(rest + wave + ebb)
    assert not in_waves(rest + wave + rest + wave)
    assert not in_waves(rest + wave + ebb[:1] + wave)
    assert not in_waves([100.0] * 9 + [95.0, 0.0] + [104.0] * 9)
    assert not in_waves(rest)
    assert not in_waves([])


def test_hardly_any_second_of_steady_traffic_is_taken_for_a_fall() -> None:
    counts = np.random.default_rng(0).poisson(30.0, 3000).astype(float).tolist()
    falls = sum(len(since_the_fall(counts[end - 60 : end])) < 60 for end in range(60, len(counts)))
    assert falls < 10


@pytest.mark.parametrize("rate", [100.0, 1000.0, 5000.0])
def test_nor_is_one_of_busy_traffic_that_varies_by_a_tenth(rate: float) -> None:
    random = np.random.default_rng(0)
    counts = random.poisson(rate * random.normal(1.0, 0.1, 3000)).astype(float).tolist()
    falls = sum(len(since_the_fall(counts[end - 60 : end])) < 60 for end in range(60, len(counts)))
    assert falls < 10
    assert since_the_fall([rate] * 30 + [rate / 3]) == [rate / 3]
