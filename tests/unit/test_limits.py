"""How much a key may ask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import SpecError, TryLater
from tidepool.serve.limits import DAY_S, Limit, Limits, bucket


def let_through(limits: Limits, limit: Limit, requests: int, key: str = "alice") -> int:
    """How many of so many requests pass."""
    passed = 0
    for _ in range(requests):
        try:
            limits.check(key, limit)
            passed += 1
        except TryLater:
            pass
    return passed


def refusal(limits: Limits, limit: Limit, key: str = "alice") -> TryLater:
    with pytest.raises(TryLater) as refused:
        limits.check(key, limit)
    return refused.value


def test_a_burst_passes_and_then_the_rate() -> None:
    now = [1000.0]
    limits, limit = Limits(clock=lambda: now[0]), Limit(per_second=2, burst=5)
    assert let_through(limits, limit, 20) == 5
    assert refusal(limits, limit).retry_after_s == pytest.approx(0.5)
    now[0] += 0.5
    assert let_through(limits, limit, 20) == 1
    now[0] += 100
    assert let_through(limits, limit, 20) == 5


def test_keys_do_not_share_their_buckets() -> None:
    limits, limit = Limits(clock=lambda: 0.0), Limit(per_second=1, burst=2)
    assert let_through(limits, limit, 5, "alice") == let_through(limits, limit, 5, "bob") == 2


def test_a_quota_lasts_until_midnight_utc() -> None:
    now = [10 * DAY_S + 80_000.0]
    limits, limit = Limits(clock=lambda: now[0]), Limit(per_day=3)
    assert let_through(limits, limit, 10) == 3
    assert refusal(limits, limit).retry_after_s == pytest.approx(6_400)
    now[0] += 6_400
    assert let_through(limits, limit, 10) == 3


def test_without_a_limit_everything_passes() -> None:
    assert let_through(Limits(), Limit(), 100) == 100


def test_a_refusal_says_whose_count_it_is() -> None:
    limits, limit = Limits(clock=lambda: 0.0), Limit(per_day=1)
    limits.check("alice", limit)
    assert "of all replicas together" in str(refusal(limits, limit))
    limits.take_back({})
    assert "of each replica" in str(refusal(limits, limit))
    limits.hear({})
    assert "of all replicas together" in str(refusal(limits, limit))


def test_a_limit_reads_as_it_is_typed() -> None:
    assert str(Limit(2.5, 5, 1000)) == "2.5/s, 5 at once, 1000/day"
    assert str(Limit(per_day=10)) == "10/day"


@pytest.mark.parametrize("wrong", [{"per_second": 0}, {"per_second": -1}, {"burst": 0}, {"per_day": -1}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        Limit(**wrong)


@given(
    st.floats(0.1, 100),
    st.integers(1, 10),
    st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_no_stretch_of_time_sees_more_than_its_rate_and_one_burst(rate: float, burst: int, gaps: list[float]) -> None:
    now, full_at, passed = 0.0, 0.0, list[float]()
    for gap in gaps:
        now += gap
        full_at, wait_s = bucket(full_at, rate, burst, now)
        if wait_s == 0:
            passed.append(now)
        else:
            assert bucket(full_at, rate, burst, now + wait_s)[1] == 0
    for first, begin in enumerate(passed):
        for last in range(first, len(passed)):
            assert last - first + 1 <= rate * (passed[last] - begin) + burst + 1e-6
