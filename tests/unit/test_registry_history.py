"""Where a rollback leads, after any sequence of promotions and rollbacks."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tidepool.registry.entities import Move
from tidepool.registry.history import KEPT, caught_up, dumps, loads, previous, standing

ANY = range(1000)


def promotions(*versions: int) -> list[Move]:
    return [Move(version, 0.0) for version in versions]


def rolled_back(moves: list[Move]) -> list[Move]:
    to = previous(moves, ANY)
    assert to is not None
    return [*moves, Move(to, 0.0, rollback=True)]


def test_each_rollback_goes_back_one() -> None:
    moves = rolled_back(promotions(1, 2, 3))
    assert standing(moves) == [1, 2]
    moves = rolled_back(moves)
    assert standing(moves) == [1]
    assert previous(moves, ANY) is None


def test_a_promotion_after_rollbacks_goes_on_from_where_they_led() -> None:
    moves = [*rolled_back(rolled_back(promotions(1, 2, 3))), *promotions(3)]
    assert standing(moves) == [1, 3]
    assert previous(moves, ANY) == 1


def test_a_rollback_passes_over_versions_that_were_deleted() -> None:
    moves = promotions(1, 2, 3)
    assert previous(moves, existing={1, 3}) == 1
    assert standing([*moves, Move(1, 0.0, rollback=True)]) == [1]


def test_a_rollback_leads_to_another_version_than_the_one_that_stands() -> None:
    assert previous(promotions(1, 2, 2), ANY) == 1


def test_a_move_that_somebody_else_made_counts_as_a_promotion() -> None:
    moves = caught_up(promotions(1, 2), current=7, now=3.0)
    assert moves[-1] == Move(7, 3.0)
    assert previous(moves, ANY) == 2
    assert caught_up(promotions(1, 2), current=2, now=3.0) == promotions(1, 2)
    assert caught_up((), current=None, now=3.0) == []


def test_a_log_survives_storing_in_whole_seconds() -> None:
    moves = (Move(3, 1_800_000_000.0), Move(2, 1_800_000_001.0, rollback=True))
    assert loads(dumps(moves)) == moves


def test_a_stored_log_keeps_the_newest_moves_and_fits_into_a_tag() -> None:
    text = dumps([Move(number, 1_800_000_000.0, rollback=True) for number in range(100_000, 100_000 + 3 * KEPT)])
    assert len(text) < 5000
    assert loads(text)[-1].version == 100_000 + 3 * KEPT - 1


@settings(deadline=None)
@given(st.lists(st.one_of(st.integers(1, 5), st.none()), max_size=30), st.integers(0, 30))
def test_a_shortened_log_agrees_with_the_whole_one(steps: list[int | None], dropped: int) -> None:
    """None is a rollback, a number a promotion; `expected` is the plain stack that both logs stand for."""
    moves: list[Move] = []
    expected: list[int] = []
    for step in steps:
        if step is not None and expected[-1:] != [step]:
            moves, expected = [*moves, Move(step, 0.0)], [*expected, step]
        elif step is None and len(expected) > 1:
            moves, expected = rolled_back(moves), expected[:-1]
    assert standing(moves) == expected
    shortened = standing(moves[dropped:])
    assert shortened == expected[len(expected) - len(shortened) :]
    assert bool(shortened) == bool(moves[dropped:])
