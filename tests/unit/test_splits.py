"""Who is answered by which version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import SpecError
from tidepool.serve.splits import Route, Split, place

KEYS = [f"customer-{number}" for number in range(20_000)]
percents = st.floats(0, 100)


def canary(percent: float, version: str = "5", model: str = "digits") -> set[str]:
    """Who is in a canary."""
    split = Split(model, "4", canary=version, canary_percent=percent)
    return {key for key in KEYS if split.route(key).version == version}


def test_without_a_canary_everybody_is_answered_by_the_champion() -> None:
    assert Split("digits", "4").route("anybody") == Route("4")


def test_a_canary_gets_its_share() -> None:
    assert len(canary(10)) / len(KEYS) == pytest.approx(0.10, abs=0.01)
    assert not canary(0)
    assert len(canary(100)) == len(KEYS)


@given(st.text(max_size=20), percents, percents)
def test_whoever_is_in_a_canary_stays_in_while_it_grows(key: str, one: float, other: float) -> None:
    small, large = (Split("m", "4", canary="5", canary_percent=p).route(key).version for p in sorted((one, other)))
    assert small == "4" or large == "5"


@given(st.text(max_size=50), st.text(max_size=100))
def test_a_place_is_always_the_same(key: str, salt: str) -> None:
    assert 0 <= place(key, salt) < 100
    assert place(key, salt) == place(key, salt)


def test_places_are_known_for_ever() -> None:
    assert place("customer-1", "canary 5 digits") == pytest.approx(46.834085476962684)


def test_places_are_spread_evenly() -> None:
    counts, _ = np.histogram([place(key, "salt") for key in KEYS], bins=20, range=(0, 100))
    expected = len(KEYS) / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-squared, 19 degrees of freedom, 1 in 1000


@pytest.mark.parametrize("other", [canary(10, version="6"), canary(10, model="letters")])
def test_another_canary_picks_other_people(other: set[str]) -> None:
    assert len(canary(10) & other) / len(KEYS) == pytest.approx(0.01, abs=0.005)


def test_a_shadow_never_answers() -> None:
    split = Split("digits", "4", shadow="5", shadow_percent=30)
    routes = [split.route(key) for key in KEYS]
    assert {route.version for route in routes} == {"4"}
    assert sum(route.shadow == "5" for route in routes) / len(KEYS) == pytest.approx(0.3, abs=0.02)


def test_a_part_of_the_canarys_requests_is_compared_with_the_champion() -> None:
    split = Split("digits", "4", canary="5", canary_percent=50, compare_percent=20)
    routes = [split.route(key) for key in KEYS]
    compared = [route for route in routes if route.shadow is not None]
    assert {(route.version, route.shadow) for route in compared} == {("5", "4")}
    assert len(compared) / len(KEYS) == pytest.approx(0.1, abs=0.01)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(SpecError, match="canary_percent"):
        Split("digits", "4", canary="5", canary_percent=101)
