"""One bad request fails alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.serve.isolation import BROKEN_AFTER, isolate


class Engine:
    """Doubles numbers, unless a guilty one is among them; counts its runs."""

    def __init__(self, guilty: set[int]) -> None:
        self.guilty, self.runs = guilty, 0

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        self.runs += 1
        if bad := self.guilty & set(numbers):
            raise ValueError(f"{sorted(bad)}")
        return [2 * number for number in numbers]


@given(st.integers(0, 64), st.sets(st.integers(0, 63), max_size=BROKEN_AFTER - 1))
def test_the_guilty_fail_and_everybody_else_is_answered(requests: int, guilty: set[int]) -> None:
    outcomes = isolate(Engine(guilty), range(requests))
    for number, outcome in enumerate(outcomes):
        if number in guilty:
            assert isinstance(outcome, ValueError)
            assert str(outcome) == f"[{number}]"
        else:
            assert outcome == 2 * number


def test_one_guilty_costs_twice_the_logarithm() -> None:
    engine = Engine({17})
    isolate(engine, range(64))
    assert engine.runs == 1 + 2 * 6


def test_a_broken_engine_is_given_up_on_early() -> None:
    engine = Engine(set(range(64)))
    outcomes = isolate(engine, range(64))
    assert all(isinstance(outcome, ValueError) for outcome in outcomes)
    assert engine.runs < 24


@pytest.mark.parametrize("raised", [SystemExit(3), StopIteration(), KeyboardInterrupt()])
def test_what_a_future_cannot_carry_becomes_an_error_that_it_can(raised: BaseException) -> None:
    def engine(_: Sequence[int]) -> list[int]:
        raise raised

    (outcome,) = isolate(engine, [1])
    assert isinstance(outcome, RuntimeError)
    assert type(raised).__name__ in str(outcome)
