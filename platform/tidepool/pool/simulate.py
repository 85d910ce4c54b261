"""The pool at scale: the same policy on thousands of accelerators, against splits and against loans without elasticity.

Four ways to run the same jobs and requests on the same accelerators:

    static split          serving has a part that holds its peak, training the rest; jobs have all their workers or wait
    split, elastic        the same two parts, but jobs grow and shrink within theirs
    loans, not elastic    one pool; jobs have all or none: a wave of traffic throws whole jobs out, back to a checkpoint
    shared, elastic       one pool; jobs yield workers at a step boundary and grow back: what tidepool does

The constants are measured (see `state.LIVE` and `state.SEGMENTS`) and are arguments here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tidepool.pool import workload
from tidepool.pool.fleet import RELEASE_AFTER_S, Fleet, Physics, Service
from tidepool.pool.forecast import ahead, recent_peak
from tidepool.pool.outcome import Outcome, Table
from tidepool.pool.policy import PolicySpec
from tidepool.pool.staffing import LatencyCurve, Staffing
from tidepool.pool.state import LIVE, SEGMENTS, Costs
from tidepool.pool.workload import DAY_S, Jobs
from tidepool.telemetry.progress import Progress, quiet

Floats = npt.NDArray[np.float64]

CURVE = LatencyCurve((1, 2, 4, 8, 16), (0.8, 0.85, 0.95, 1.2, 1.9), (1.6, 1.7, 1.9, 2.4, 3.8))
"""A replica of a small language model: seconds for an answer with so many in flight."""

NOTE_EVERY_S = 600.0
"""Between two rows of the tide."""
LONGEST_S = 2 * DAY_S
"""Longer jobs are cut to this, or to half of the scenario's days."""
DRAIN = 3
"""So many times the scenario's days are simulated if jobs are still there."""


@dataclass(frozen=True)
class Scenario:
    """What is simulated. Durations in seconds."""

    accelerators: int = 1000
    days: float = 7.0
    serving_share: float = 0.4
    """Part of the accelerators that serving wants at its peak; a split gives it that part for good."""
    load: float = 0.9
    """Work of the jobs against what the rest of the accelerators could do."""
    apps: int = 8
    curve: LatencyCurve = CURVE
    slo_s: float = 4.0
    jobs: Path | None = None
    """A trace as Philly's; generated if there is none."""
    requests: Path | None = None
    """A trace as Azure's; generated if there is none."""
    live: Costs = LIVE
    segments: Costs = SEGMENTS
    elastic_from: int = 1
    """Where jobs are elastic, those are that ask for so many accelerators or more."""
    replica_start_s: float = 3.0
    tick_s: float = 10.0
    share_every_s: float = 10.0
    """Runs share anew so often; they yield to serving in any tick."""
    horizon_s: float = 30.0
    """How far ahead the forecast of requests looks."""
    policy: PolicySpec = field(default_factory=lambda: PolicySpec(patience_s=DAY_S))
    """A large job may be passed by smaller ones for a day: with less patience a split does far worse."""
    seed: int = 0


@dataclass(frozen=True)
class Regime:
    """One way to run the pool."""

    name: str
    shared: bool
    elastic: bool


REGIMES = (
    Regime("static split", shared=False, elastic=False),
    Regime("split, elastic", shared=False, elastic=True),
    Regime("loans, not elastic", shared=True, elastic=False),
    Regime("shared, elastic", shared=True, elastic=True),
)


def simulate(scenario: Scenario, regimes: Sequence[Regime] = REGIMES, progress: Progress = quiet) -> Table:
    """Run the same jobs and requests under each regime.

    Raises:
        DataError: a trace can't be read.
    """
    load = _load(scenario)
    return Table(tuple(_run(scenario, regime, load, progress) for regime in regimes))


@dataclass(frozen=True)
class _Load:
    jobs: Jobs
    rates: Floats
    expected: Floats
    """By tick and application, in requests a second: what comes, and what the forecast said before."""
    staffing: Staffing


def _load(scenario: Scenario) -> _Load:
    """Jobs and requests in the amounts that the scenario asks for."""
    ticks, seconds = round(scenario.days * DAY_S / scenario.tick_s), scenario.days * DAY_S
    serving = _serving(scenario)
    staffing = Staffing(scenario.curve, scenario.slo_s, at_most=serving)
    shape = (
        workload.shape_of(workload.read_requests(scenario.requests), scenario.tick_s)
        if scenario.requests
        else workload.generate_shape(round(3600 / scenario.tick_s), scenario.tick_s, scenario.seed)
    )
    rates = workload.scaled(
        lambda mean: workload.rates(shape, ticks, scenario.tick_s, scenario.apps, mean, seed=scenario.seed),
        lambda rates: _peak(scenario, staffing, rates),
        serving,
    )
    forecast = ahead(rates, scenario.tick_s, scenario.horizon_s)
    rest = scenario.accelerators - serving
    jobs = (
        workload.read_jobs(scenario.jobs)
        if scenario.jobs
        else workload.generate_jobs(max(1000, scenario.accelerators * 20), seconds, scenario.seed)
    )
    work, longest = scenario.load * rest * seconds, min(LONGEST_S, seconds / 2)
    fitted = workload.fit_jobs(jobs, seconds, work, max(1, rest // 4), longest, scenario.seed)
    return _Load(fitted, rates, np.concatenate([rates[:1], forecast[:-1]]), staffing)


def _peak(scenario: Scenario, staffing: Staffing, rates: Floats) -> float:
    """Replicas that all applications together hold at their busiest, but for one tick in a thousand."""
    bins = round(RELEASE_AFTER_S / scenario.tick_s)
    held = recent_peak(np.ceil(staffing.needed(ahead(rates, scenario.tick_s, scenario.horizon_s))), max(1, bins))
    return float(np.quantile(held.sum(axis=1), 0.999))


def _serving(scenario: Scenario) -> int:
    return round(scenario.serving_share * scenario.accelerators)


@dataclass
class _Tally:
    """What is counted while a regime runs, over the scenario's days; training over the drain after them too."""

    held: float = 0.0
    """Accelerator-ticks in use."""
    trained: float = 0.0
    """Accelerator-seconds of training."""
    late: float = 0.0
    tide: list[tuple[float, float, float, float]] = field(default_factory=list)


def _run(scenario: Scenario, regime: Regime, load: _Load, progress: Progress) -> Outcome:
    """Ticks over the scenario's days, then, as traffic goes on, until the last job is over."""
    began, tally = time.perf_counter(), _Tally()
    train, serve = _fleets(scenario, regime, load)
    ticks, none, arrived = len(load.rates), np.empty(0), 0
    share_every, note_every = (max(1, round(s / scenario.tick_s)) for s in (scenario.share_every_s, NOTE_EVERY_S))
    for tick in range(DRAIN * ticks):
        now, row, share = tick * scenario.tick_s, tick % ticks, tick % share_every == 0
        while arrived < len(load.jobs) and load.jobs.arrival_s[arrived] <= now:
            train.submit(*(float(column[arrived]) for column in load.jobs.columns))
            arrived += 1
        serve.tick(now, load.expected[row], load.rates[row], scenario.tick_s, share)
        if train is not serve:
            train.tick(now, none, none, scenario.tick_s, share)
        tally.trained += train.training * scenario.tick_s
        if tick < ticks:
            tally.held += train.training + serve.serving
            tally.late = serve.late
            if tick % note_every == 0:
                tally.tide.append((now, train.training, serve.serving, float(load.rates[row].sum())))
                progress(regime.name, tick, ticks)
        elif not train.active:
            break
    progress(regime.name, ticks, ticks)
    return _outcome(scenario, regime, train, tally, now, time.perf_counter() - began)


def _fleets(scenario: Scenario, regime: Regime, load: _Load) -> tuple[Fleet, Fleet]:
    """(the one that trains, the one that serves): the same one if the pool is shared."""
    services = [Service(load.staffing) for _ in range(scenario.apps)]
    physics = Physics(
        live=scenario.live,
        segments=scenario.segments,
        start_s=scenario.replica_start_s,
        elastic_from=scenario.elastic_from if regime.elastic else math.inf,
        yields=regime.elastic,
        parkable=regime.shared,
    )
    if regime.shared:
        fleet = Fleet(scenario.accelerators, services, physics, scenario.policy)
        return fleet, fleet
    serving = _serving(scenario)
    rest = Fleet(scenario.accelerators - serving, [], physics, scenario.policy)
    return rest, Fleet(serving, services, physics, scenario.policy)


def _outcome(scenario: Scenario, regime: Regime, train: Fleet, tally: _Tally, now: float, took_s: float) -> Outcome:
    waited = np.array(
        [job.waiting + (now - job.seen if not job.ended and not job.workers else 0) for job in train.jobs]
    )
    taken = np.array([(job.ended or now) - job.arrived for job in train.jobs])
    return Outcome(
        regime=regime.name,
        jobs=len(train.jobs),
        queueing_s=float(waited.mean()),
        queueing_p95_s=float(np.quantile(waited, 0.95)),
        completion_s=float(taken.mean()),
        completion_p95_s=float(np.quantile(taken, 0.95)),
        unfinished=sum(job.ended is None for job in train.jobs),
        late=tally.late,
        used=tally.held / (scenario.days * DAY_S / scenario.tick_s * scenario.accelerators),
        resizes=sum(train.moves[kind] for kind in ("shrink", "park", "grow", "resume")),
        paused=train.paused / tally.trained,
        redone=train.redone / tally.trained,
        took_s=took_s,
        tide=np.array(tally.tide),
    )
