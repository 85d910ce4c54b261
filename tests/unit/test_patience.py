"""An idle engine waits for those it has just answered, if that pays."""

from __future__ import annotations

import pytest

from tidepool.serve.costs import Costs
from tidepool.serve.patience import Patience, worth

SLO_S = 0.1


@pytest.fixture
def costs() -> Costs:
    """10 ms, and 0.1 ms a row."""
    costs = Costs()
    for _ in range(20):
        for size in (1, 2, 4, 8, 16, 32):
            costs.observe(size, 0.01 + 0.0001 * size)
    return costs


def after_rounds(return_s: float, rounds: int = 50, clients: int = 8) -> tuple[Patience, float]:
    """Of `clients` that come back `return_s` after each answer; answered just now."""
    patience, now = Patience(SLO_S), 0.0
    for _ in range(rounds):
        patience.answered(clients, now)
        for _ in range(clients):
            patience.arrived(now + return_s)
        now += return_s + 0.011
    patience.answered(clients, now)
    return patience, now


def test_it_waits_for_those_who_come_back_quickly(costs: Costs) -> None:
    patience, now = after_rounds(return_s=0.001)
    assert patience.wait_s(now, requests=8, size=8, limit=32, costs=costs) > 0.001


def test_it_waits_no_longer_than_twice_their_usual_time(costs: Costs) -> None:
    patience, now = after_rounds(return_s=0.001)
    assert patience.wait_s(now + 0.0025, requests=8, size=8, limit=32, costs=costs) == 0


def test_it_waits_no_more_when_all_are_back_or_the_batch_is_full(costs: Costs) -> None:
    patience, now = after_rounds(return_s=0.001)
    assert patience.wait_s(now, requests=32, size=32, limit=32, costs=costs) == 0
    for _ in range(8):
        patience.arrived(now)
    assert patience.wait_s(now, requests=16, size=16, limit=32, costs=costs) == 0


def test_it_does_not_wait_for_those_who_take_longer_than_joining_saves(costs: Costs) -> None:
    patience, now = after_rounds(return_s=0.02)
    assert patience.wait_s(now, requests=8, size=8, limit=32, costs=costs) == 0


def test_a_lone_client_never_waits_for_anybody(costs: Costs) -> None:
    patience, now = after_rounds(return_s=0.001, clients=1)
    patience.arrived(now)
    assert patience.wait_s(now, requests=1, size=1, limit=32, costs=costs) == 0


def test_those_who_stay_away_are_given_up(costs: Costs) -> None:
    patience, now = after_rounds(return_s=0.001)
    for _ in range(100):
        now += 0.02
        patience.arrived(now)
        patience.answered(8, now)
    assert patience.wait_s(now, requests=1, size=1, limit=32, costs=costs) == 0


def test_the_latency_objective_comes_before_throughput() -> None:
    assert worth(since_s=0.0, return_s=0.002, gain_s=0.01, slack_s=1.0) == 0.004
    assert worth(since_s=0.0, return_s=0.002, gain_s=0.01, slack_s=0.001) == 0.001
    assert worth(since_s=0.0, return_s=0.002, gain_s=0.01, slack_s=-0.001) == 0
