"""The simulated pool: time and work add up, and sharing does what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tidepool.pool.fleet import Fleet, Physics, Service
from tidepool.pool.outcome import Table
from tidepool.pool.policy import PolicySpec
from tidepool.pool.simulate import CURVE, REGIMES, Scenario, simulate
from tidepool.pool.staffing import Staffing

QUIET = np.empty(0)
SPEC = PolicySpec(hold_s=0.0)


def fleet(total: int, **physics: object) -> Fleet:
    return Fleet(total, [], Physics(**physics), SPEC)  # type: ignore[arg-type]


def run(pool: Fleet, ticks: int, tick_s: float = 10.0, start: int = 0) -> None:
    for tick in range(start, start + ticks):
        pool.tick(tick * tick_s, QUIET, QUIET, tick_s, share=True)


def test_a_job_alone_takes_its_time_and_a_pause() -> None:
    pool = fleet(4, elastic_from=math.inf)
    pool.submit(0.0, 4, 100.0)
    run(pool, 20)
    assert pool.jobs[0].ended == pytest.approx(113.0)  # 13 s until a worker group trains
    assert (pool.training, pool.active) == (0, False)


def test_a_job_with_room_has_twice_its_workers_and_is_done_sooner() -> None:
    pool = fleet(8, scaling=1.0)
    pool.submit(0.0, 4, 100.0)
    run(pool, 20)
    assert pool.jobs[0].ended == pytest.approx(50.029)


def test_all_or_nothing_jobs_wait_for_room() -> None:
    pool = fleet(4, elastic_from=math.inf)
    pool.submit(0.0, 3, 100.0)
    pool.submit(0.0, 2, 50.0)
    run(pool, 30)
    assert pool.jobs[1].started == 120.0
    assert pool.jobs[1].waiting == 120.0


def test_elastic_jobs_make_room_for_each_other() -> None:
    pool = fleet(4)
    pool.submit(0.0, 4, 1000.0)
    run(pool, 3)
    pool.submit(20.0, 4, 1000.0)
    run(pool, 3, start=3)
    assert [job.workers for job in pool.jobs] == [2, 2]
    assert pool.training == 4


def served(wanted_rate: float) -> Service:
    service = Service(Staffing(CURVE, slo_s=4.0, at_most=4))
    assert service.staffing.replicas(wanted_rate) == 2
    return service


def test_a_wave_takes_accelerators_and_the_ebb_gives_them_back() -> None:
    service = served(10.0)
    pool = Fleet(4, [service], Physics(release_after_s=0.0), SPEC)
    pool.submit(0.0, 4, 100_000.0)
    none, wave = np.array([0.0]), np.array([10.0])
    pool.tick(0.0, none, none, 10.0, share=True)
    assert (pool.training, pool.serving) == (4, 0)
    pool.tick(10.0, wave, wave, 10.0, share=True)
    assert (pool.training, pool.serving) == (2, 2)
    pool.tick(20.0, none, none, 10.0, share=True)
    pool.tick(30.0, none, none, 10.0, share=True)
    assert (pool.training, pool.serving) == (4, 0)
    assert pool.redone == 0


def test_what_cannot_yield_falls_back_to_its_checkpoint() -> None:
    pool = Fleet(2, [served(10.0)], Physics(elastic_from=math.inf, yields=False, checkpoint_every_s=60.0), SPEC)
    pool.submit(0.0, 2, 1000.0)
    none, wave = np.array([0.0]), np.array([10.0])
    for tick in range(10):
        pool.tick(10.0 * tick, none, none, 10.0, share=True)
    pool.tick(100.0, wave, wave, 10.0, share=True)
    assert pool.redone == pytest.approx(2 * 40.0)  # 100 s after its start, 40 s after its checkpoint
    assert pool.jobs[0].workers == 0


def test_requests_beyond_what_replicas_can_do_are_late_until_the_queue_is_gone() -> None:
    service = Service(Staffing(CURVE, slo_s=4.0, at_most=4), replicas=1)
    pool = Fleet(1, [service], Physics(), SPEC)
    pool.tick(0.0, np.array([1.0]), np.array([50.0]), 10.0, share=True)
    assert pool.late == 1.0
    assert service.backlog == pytest.approx((50 - CURVE.throughput) * 10)


@pytest.fixture(scope="module")
def table() -> Table:
    return simulate(Scenario(accelerators=48, days=0.5, apps=2, load=1.0, tick_s=20.0))


def test_sharing_with_elasticity_beats_a_split_and_loans_without_it(table: Table) -> None:
    split, _, loans, shared = table.outcomes
    assert shared.queueing_s < split.queueing_s / 2
    assert shared.completion_s < min(split.completion_s, loans.completion_s)
    assert shared.used > split.used
    assert shared.late <= split.late + 0.005
    assert (shared.redone, loans.redone > 0) == (0.0, True)


def test_every_regime_does_the_same_jobs_to_the_end(table: Table) -> None:
    assert {outcome.jobs for outcome in table.outcomes} == {table.outcomes[0].jobs}
    assert all(outcome.unfinished == 0 and outcome.used <= 1 for outcome in table.outcomes)


def test_the_same_seed_gives_the_same_outcome() -> None:
    scenario = Scenario(accelerators=16, days=0.1, apps=1, tick_s=30.0)
    one, other = (simulate(scenario, REGIMES[3:]).outcomes[0] for _ in range(2))
    assert (one.completion_s, one.resizes, one.late) == (other.completion_s, other.resizes, other.late)


def test_the_table_has_a_row_a_regime_against_the_first(table: Table) -> None:
    lines = table.to_markdown().splitlines()
    assert len(lines) == 2 + len(REGIMES)
    assert lines[2].startswith("| static split |")
    assert "1.00x" in lines[2]
    assert len({line.count("|") for line in lines}) == 1
