"""One bad request fails alone."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import InvalidRequest
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


@pytest.mark.parametrize("guilty", [BROKEN_AFTER, BROKEN_AFTER + 1, 2 * BROKEN_AFTER, 4 * BROKEN_AFTER, 63])
def test_innocents_behind_many_guilty_are_answered(guilty: int) -> None:
    outcomes = isolate(Engine(set(range(guilty))), range(64))
    assert outcomes[guilty:] == [2 * number for number in range(guilty, 64)]


def test_requests_that_the_recipe_refuses_say_nothing_of_the_engine() -> None:
    def refuse(numbers: Sequence[int]) -> list[int]:
        if bad := [number for number in numbers if number != BROKEN_AFTER + 1]:
            raise InvalidRequest("no such number", seen=bad[0])
        return list(numbers)

    outcomes = isolate(refuse, range(3 * BROKEN_AFTER))
    assert outcomes[BROKEN_AFTER + 1] == BROKEN_AFTER + 1
    assert all(f"Seen: {number}." in str(outcome) for number, outcome in enumerate(outcomes) if outcome != number)


def test_one_guilty_costs_twice_the_logarithm() -> None:
    engine = Engine({17})
    isolate(engine, range(64))
    assert engine.runs == 1 + 2 * 6


def test_a_broken_engine_is_given_up_on_early() -> None:
    engine = Engine(set(range(64)))
    outcomes = isolate(engine, range(64))
    tried = [outcome for outcome in outcomes if isinstance(outcome, ValueError)]
    untried = [str(outcome) for outcome in outcomes if isinstance(outcome, RuntimeError)]
    assert len(tried) + len(untried) == 64
    assert set(untried) == {"the engine failed for all that were tried"}, "nobody reads of another's request"
    assert engine.runs < 24


@pytest.mark.parametrize("raised", [SystemExit(3), StopIteration(), KeyboardInterrupt()])
def test_what_a_future_cannot_carry_becomes_an_error_that_it_can(raised: BaseException) -> None:
    def engine(_: Sequence[int]) -> list[int]:
        raise raised

    (outcome,) = isolate(engine, [1])
    assert isinstance(outcome, RuntimeError)
    assert type(raised).__name__ in str(outcome)
