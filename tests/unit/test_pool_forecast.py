"""What the forecast says half a minute ahead."""

from __future__ import annotations

import numpy as np
import pytest

from tidepool.pool.forecast import ahead, replicas_wanted
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
