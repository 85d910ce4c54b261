"""Replicas for a latency objective, from what replicas report; against Ray's default rule in a simulated queue."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest

from tidepool.pool.workload import Floats
from tidepool.serve.objective import Objective, Vitals, latency_curve

SERVICE_S, SLO_S, MOST, TICK_S = 0.1, 1.0, 8, 0.1
STARTS_S, STAYS_S = 1.5, 2.0
"""From the wish to the new replica's first answer; from the wish for fewer to the end of one (`downscale_delay_s`)."""
COSTS = {"one_s": SERVICE_S, "full_s": SERVICE_S, "full": 1.0}

Decide = Callable[[Vitals, float, int], float]
"""(vitals, seconds, requests in flight) to replicas."""


def said(arriving: float, late: float = 0.0, replicas: int = 1, **costs: float) -> Vitals:
    """What replicas report that share the load."""
    every = {"arriving": arriving / replicas, "late": late, **(costs or COSTS)}
    return {name: [value] * replicas for name, value in every.items()}


def played(due_s: Floats, decide: Decide) -> tuple[float, float]:
    """The share of late answers, and replicas in the mean: each answers in turn, the shortest queue gets the next."""
    due, latencies, recent = deque(due_s), [], deque[float]()
    done_s, starts_s, lower_since, held = [0.0], list[float](), math.inf, []
    for now in np.arange(TICK_S, due_s[-1] + 5, TICK_S):
        while due and due[0] < now:
            at = due.popleft()
            which = min(range(len(done_s)), key=lambda one: done_s[one])
            done_s[which] = max(done_s[which], at) + SERVICE_S
            latencies.append(done_s[which] - at)
            recent.append(at)
        while recent and recent[0] < now - 0.5:
            recent.popleft()
        done_s += [now for at in starts_s if at <= now]
        starts_s = [at for at in starts_s if at > now]
        waits = [max(0.0, until - now) for until in done_s]
        vitals = said(len(recent) / 0.5, sum(waits) / len(waits) / SLO_S, len(done_s))
        wish = decide(vitals, float(now), sum(math.ceil(wait / SERVICE_S - 1e-9) for wait in waits))
        wanted, there = min(MOST, max(1, math.ceil(wish - 1e-9))), len(done_s) + len(starts_s)
        lower_since = min(lower_since, now) if wanted < there else math.inf
        starts_s += [now + STARTS_S] * (wanted - there)
        if now - lower_since > STAYS_S:
            done_s = sorted(done_s)[: max(1, wanted - len(starts_s))]
        held.append(there)
    return float(np.mean(np.array(latencies) > SLO_S)), float(np.mean(held))


def default_of_ray(vitals: Vitals, now: float, in_flight: int) -> float:
    """Two requests in flight a replica, its default."""
    return in_flight / 2


def tide(seconds: float, period_s: float) -> Floats:
    """When requests are due whose rate swells from a tenth to all of 70 % of what `MOST` replicas can answer."""
    random, peak = np.random.default_rng(0), 0.7 * MOST / SERVICE_S
    times = np.sort(random.random(random.poisson(peak * seconds)) * seconds)
    kept: Floats = times[random.random(len(times)) < 0.55 - 0.45 * np.cos(2 * np.pi * times / period_s)]
    return kept


@pytest.mark.parametrize("period_s", [120.0, 60.0, 30.0])
def test_it_holds_the_objective_where_rays_default_does_not(period_s: float) -> None:
    due_s = tide(240, period_s)
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    late, held = played(due_s, lambda vitals, now, _: objective.replicas(vitals, now) or 0)
    late_default, held_default = played(due_s, default_of_ray)
    assert late < 0.01
    assert late_default > 0.05
    assert held < held_default


def test_it_has_no_opinion_before_it_knows_what_requests_cost() -> None:
    objective = Objective(SLO_S)
    assert objective.replicas(said(20.0), 0.0) is None
    objective.learn({"arriving": [20.0]}, MOST)
    assert objective.replicas(said(20.0), 0.1) is None


def test_nobody_asks_so_none_is_needed() -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    for second in range(200):
        last = objective.replicas(said(20.0 if second < 100 else 0.0), second)
    assert last == 0


def test_a_rising_rate_gets_replicas_before_it_is_there() -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), 50)
    rising = [objective.replicas(said(second), second) for second in range(60)]
    steady = Objective(SLO_S)
    steady.learn(said(0.0), 50)
    assert rising[-1] > max(steady.replicas(said(59.0), second) or 0 for second in range(60))


def test_a_backlog_beyond_the_objective_gets_replicas_of_its_own() -> None:
    calm, pressed = Objective(SLO_S), Objective(SLO_S)
    for objective in (calm, pressed):
        objective.learn(said(0.0), MOST)
    needed = calm.replicas(said(20.0, late=0.4, replicas=3), 0.0)
    assert needed is not None
    assert (pressed.replicas(said(20.0, late=2.0, replicas=3), 0.0) or 0) > needed


def test_slower_requests_need_more_replicas_once_that_is_learned() -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    before = objective.replicas(said(20.0), 0.0)
    objective.learn(said(0.0, one_s=0.2, full_s=0.2, full=1.0), MOST)
    assert before is not None
    assert (objective.replicas(said(20.0), 0.1) or 0) > before


def test_after_a_wave_its_replicas_are_let_go_within_two_seconds() -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    wave = [objective.replicas(said(54.0), tick / 5) for tick in range(50)][-1]
    after = [objective.replicas(said(4.0), 10 + tick / 5) for tick in range(10)]
    assert wave is not None
    assert wave > 4
    assert after[-1] == 1


@pytest.mark.parametrize(("busy", "replicas"), [(0.05, 1), (0.2, 3), (0.45, 4)])
def test_after_a_wave_it_goes_by_how_busy_replicas_are_not_by_what_runs_cost_in_the_crowd(
    busy: float, replicas: int
) -> None:
    objective = Objective(SLO_S)
    crowded = {"one_s": 0.45, "full_s": 0.45, "full": 1.0}
    objective.learn(said(0.0, **crowded), MOST)
    for tick in range(50):
        objective.replicas(said(40.0, **crowded), tick / 5)
    vitals = {**said(4.0, replicas=4, **crowded), "busy": [busy] * 4}
    assert [objective.replicas(vitals, 10 + tick / 5) for tick in range(10)][-1] == replicas


def test_a_backlog_after_a_wave_counts_however_idle_replicas_look() -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    for tick in range(50):
        objective.replicas(said(40.0), tick / 5)
    vitals = {**said(4.0, late=5.0, replicas=4), "busy": [0.02] * 4}
    assert [objective.replicas(vitals, 10 + tick / 5) for tick in range(10)][-1] == MOST


def test_between_waves_that_come_again_and_again_its_replicas_stay() -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    wishes = [objective.replicas(said(54.0 if tick % 25 > 12 else 4.0), tick / 5) for tick in range(300)]
    assert 6 <= min(wishes[100:]) <= max(wishes[100:]) <= 7
    after = [objective.replicas(said(4.0), 60 + tick / 5) for tick in range(100)]
    assert (after[0], after[-1]) == (wishes[-1], 1)


@pytest.mark.parametrize("asked", [0.0, 8.0, 16.0])
def test_seconds_in_which_clients_wait_for_answers_are_no_ebb(asked: float) -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    for tick in range(60):
        rate = asked if 20 <= tick < 30 else 40.0
        objective.replicas({**said(rate, replicas=4), "busy": [1.0] * 4}, tick / 5)
    after = [objective.replicas({**said(1.0, replicas=4), "busy": [0.03] * 4}, 12 + tick / 5) for tick in range(10)]
    assert after[-1] == 1


def test_a_surge_above_the_waves_is_met_at_once() -> None:
    objective = Objective(SLO_S)
    objective.learn(said(0.0), MOST)
    for tick in range(300):
        objective.replicas(said(16.0 if tick % 25 > 12 else 2.0), tick / 5)
    assert (objective.replicas(said(60.0), 60.0) or 0) >= 6


def test_batches_make_a_replica_faster_until_they_are_full() -> None:
    curve = latency_curve(one_s=0.02, full_s=0.05, full=16.0)
    assert curve.in_flight == (1, 2, 4, 8, 16, 32, 64)
    assert curve.mean_s[0] == pytest.approx(0.02)
    assert curve.mean_s[4] == pytest.approx(0.05)
    assert curve.mean_s[5:] == pytest.approx((0.10, 0.20))
    assert curve.p99_s[0] == pytest.approx(0.02)
    assert curve.p99_s[4] == pytest.approx(0.10)
    assert curve.throughput == pytest.approx(16 / 0.05)
