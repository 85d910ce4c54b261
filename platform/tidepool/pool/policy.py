"""Who should have which accelerator: `decide(pool, spec, now)`, a pure function from a snapshot to moves.

Serving has the right of way and training fills the rest. In this order:

    1. machines that are about to go are cleared, promises that nobody asks for any more are withdrawn
    2. replicas that serving lacks get free accelerators, then such as are being vacated, then training yields
    3. runs that hold more than their fair share yield to those that have less than half of theirs
    4. runs grow into what has been idle long enough
    5. machines are bought for loans that last, and given back when they aren't needed

Taking is done at once, giving back after a hold. A run is resized at most `max_moves_per_minute` times a minute on any
demand: a resize without need is made only if two are left, and the last one goes to the bottom, after which nothing can
be asked of the run (see `Plan.give`).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Self

from pydantic import Field, model_validator

from tidepool.pool.moves import Buy, Move, Return
from tidepool.pool.plan import Plan, givers_of
from tidepool.pool.shares import fair_workers
from tidepool.pool.state import EPSILON, App, Run, Snapshot
from tidepool.spec import Section


class MachinesSpec(Section):
    """Machines that the cluster autoscaler may add for the pool."""

    at_most: int = Field(0, ge=0, description="Machines bought at any time; 0 for a pool of fixed size.")
    accelerators: float = Field(1.0, gt=0, description="Accelerators of one of them.")
    buy_after_s: float = Field(60.0, ge=0, description="A loan from training that lasts longer is bought back.")
    return_after_s: float = Field(300.0, ge=0, description="A machine not needed for so long is given back.")


class PolicySpec(Section):
    """How the pool is shared. Durations in seconds."""

    hold_s: float = Field(15.0, ge=0, description="Training grows into what serving has not wanted for so long.")
    max_moves_per_minute: int = Field(6, ge=2, description="Resizes of one run, whatever the demand does.")
    training_share: tuple[float, float] = Field((0.0, 1.0), description="Least and largest share of the pool.")
    payback: float = Field(10.0, ge=0, description="Between resizes without need a run trains so many pauses long.")
    patience_s: float = Field(3600.0, ge=0, description="After so long no younger run may pass one that waits.")
    machines: MachinesSpec = MachinesSpec()

    @model_validator(mode="after")
    def _shares_in_order(self) -> Self:
        if not 0 <= self.training_share[0] <= self.training_share[1] <= 1:
            raise ValueError("training_share: needs 0 <= least <= largest <= 1")
        return self


def decide(pool: Snapshot, spec: PolicySpec, now: float) -> list[Move]:
    """The moves that bring the pool from where it is to where it should be; the same for the same input.

    They hold when they are promised in their order: who yields, who is granted what, who grows.
    """
    plan = Plan(pool, spec.max_moves_per_minute, now)
    _clear(plan, pool)
    have = _withdraw(plan, pool)
    lent = sum(plan.free.values()) + sum(plan.vacating.values()) + plan.training
    missing = _missing(pool, spec, have, lent)
    serving = sum(have[app.name] * app.per_replica for app in pool.apps)
    needed = serving + sum(app.per_replica for app in missing)
    quiet = max(pool.demand.peak(now - spec.hold_s), needed)
    least, most = (share * pool.total for share in spec.training_share)
    budget = min(max(lent + serving - quiet, least), lent, most)
    fair = fair_workers(pool.runs, budget, now, spec.patience_s)
    if unplaced := _serve(plan, pool, missing, fair):
        budget = min(budget + unplaced, lent, most)
        fair = fair_workers(pool.runs, budget, now, spec.patience_s)
    _share(plan, pool, spec, fair, budget)
    _fill(plan, pool, spec, fair, budget, now)
    _machines(plan, pool, spec, now)
    return plan.moves()


def _clear(plan: Plan, pool: Snapshot) -> None:
    """Workers leave machines that are about to go."""
    for node in (node.name for node in pool.nodes if node.closing):
        for run in pool.runs:
            if here := plan.staying(run).get(node, 0):
                plan.give(run, node, here, f"{node} is about to go")


def _withdraw(plan: Plan, pool: Snapshot) -> dict[str, int]:
    """Take back promises that are beyond demand or on machines about to go; replicas that each application has then."""
    closing = {node.name for node in pool.nodes if node.closing}
    have = {app.name: app.replicas for app in pool.apps}
    asks = {app.name: app.asks for app in pool.apps}
    for promise in pool.reservations:
        if promise.node in closing:
            plan.withdraw(promise, f"{promise.node} is about to go")
        elif have.get(promise.app, 0) >= asks.get(promise.app, 0):
            plan.withdraw(promise, f"{promise.app} asks for {_replicas(asks.get(promise.app, 0))} and has as many")
        else:
            have[promise.app] += 1
    return have


def _missing(pool: Snapshot, spec: PolicySpec, have: Mapping[str, int], lent: float) -> list[App]:
    """The applications that should get one more replica each, neediest first: as many as the pool can be made to hold.

    First what is under its own minimum, then by priority; equals by what they have of what they ask for, then the
    tighter SLO.
    """
    count: dict[str, int] = dict(have)

    def need(index: int) -> tuple[bool, int, float, float, int]:
        app = pool.apps[index]
        has = count[app.name]
        return has >= app.min_replicas, -app.priority, has / app.asks, app.slo_p99_ms, index

    largest = max((node.total for node in pool.nodes if not node.closing), default=0.0)
    holdable = [index for index, app in enumerate(pool.apps) if app.per_replica <= largest + EPSILON]
    queue = [need(index) for index in holdable if have[pool.apps[index].name] < pool.apps[index].asks]
    if not queue:
        return []
    guaranteed = sum([run.guaranteed * run.per_worker for run in pool.runs])
    budget = lent - max(guaranteed, spec.training_share[0] * pool.total if pool.runs else 0.0)
    missing = []
    heapq.heapify(queue)
    while queue:
        *_, index = heapq.heappop(queue)
        app = pool.apps[index]
        if app.per_replica <= budget + EPSILON:
            missing.append(app)
            budget -= app.per_replica
            count[app.name] += 1
            if count[app.name] < app.asks:
                heapq.heappush(queue, need(index))
    return missing


def _replicas(count: int) -> str:
    return "1 replica" if count == 1 else f"{count} replicas"


def _serve(plan: Plan, pool: Snapshot, missing: Sequence[App], fair: Mapping[str, int]) -> float:
    """A grant for every missing replica, where need be on accelerators that training yields.

    Runs yield what is over their fair share. Only where a replica takes several accelerators of one node and that opens
    no node for it, they yield down to what is guaranteed. Returns the accelerators of replicas that no node could have
    all the same, since other replicas are in their way: training may use those.
    """
    if not missing:
        return 0.0
    unplaced = 0.0
    guaranteed = {run.name: run.guaranteed for run in pool.runs}
    reasons = {app.name: f"{app.name} asks for {_replicas(app.asks)} and has {app.replicas}" for app in missing}
    for app in missing:
        why = reasons[app.name]
        if plan.grant(app, why):
            continue
        if plan.make_room(app, fair, why) or plan.make_room(app, guaranteed, why):
            plan.grant(app, why)
        else:
            unplaced += app.per_replica
    return unplaced


def _share(plan: Plan, pool: Snapshot, spec: PolicySpec, fair: Mapping[str, int], budget: float) -> None:
    """Runs over their fair share yield to those that have less than half of theirs; they grow when it is free."""
    room = budget - plan.training
    poor = [run for run in pool.runs if run.size * 2 <= fair[run.name] > 0 and _may_grow(plan, run, spec)]
    if not poor:
        return
    givers = iter(givers_of(plan, pool.runs, fair))
    for taker in sorted(poor, key=lambda run: (-run.priority, run.since, run.name)):
        room -= (fair[taker.name] - taker.size) * taker.per_worker
        why = f"{taker.name} has {taker.size} workers, its fair share is {fair[taker.name]}"
        while room < -EPSILON and (giver := next(givers, None)):
            if plan.rested(giver, spec.payback * giver.costs.shrink_pause_s):
                count = min(math.ceil(-room / giver.per_worker - EPSILON), plan.size(giver) - fair[giver.name])
                room += plan.size(giver) * giver.per_worker
                plan.give_up(giver, count, why)
                room -= plan.size(giver) * giver.per_worker


def _fill(plan: Plan, pool: Snapshot, spec: PolicySpec, fair: Mapping[str, int], budget: float, now: float) -> None:
    """Runs grow towards their fair share into free accelerators, the poorest first."""
    if budget - plan.training < EPSILON:
        return
    poor = [run for run in pool.runs if run.size < fair[run.name] and _may_grow(plan, run, spec)]
    for run in sorted(poor, key=lambda run: (-run.priority, run.size / fair[run.name], run.since, run.name)):
        room = budget - plan.training
        more = min(fair[run.name] - run.size, int((room + EPSILON) / run.per_worker))
        idle = pool.demand.idle_s(pool.total - plan.training - more * run.per_worker, now)
        if more > 0 and _pays(run, more, idle):
            why = f"its fair share is {fair[run.name]} workers; {room:g} accelerators are not wanted"
            plan.place(run, more, f"{why}, a pause of {run.costs.grow_pause_s:g} s")


def _may_grow(plan: Plan, run: Run, spec: PolicySpec) -> bool:
    """Whether the run isn't resized too often; while it is parked, a pause costs it nothing."""
    return plan.rested(run, spec.payback * run.costs.grow_pause_s if run.size else 0.0)


def _pays(run: Run, more: int, idle_s: float) -> bool:
    """Whether `more` workers are worth the pause of all.

    How long they will stay isn't known. As in renting skis until the rent has reached the price (Karlin et al., 1988),
    growing only after they have been idle for as long as it takes to earn the pause back costs at most twice what
    knowing the future would. And what is nearly done doesn't grow.
    """
    grown = run.size + more
    saved = math.inf if run.remaining_s is None else run.remaining_s * more / grown
    return run.size == 0 or (idle_s * more >= run.costs.grow_pause_s * grown and saved > run.costs.grow_pause_s)


def _machines(plan: Plan, pool: Snapshot, spec: PolicySpec, now: float) -> None:
    """Loan first, buy second: machines for serving's demand that training can't cover, and for loans that last.

    An application owns its `min_replicas`; what it holds above is on loan from training, as far as training could use
    it. When the machine is there runs grow again, which returns the loan; when the wave is over the machine goes back.
    """
    if not (spec.machines.at_most or any(node.bought for node in pool.nodes)):
        return
    each, own = spec.machines.accelerators, sum(app.min_replicas * app.per_replica for app in pool.apps)
    base = sum(node.total for node in pool.nodes if not node.bought)
    usable = min(sum(run.max_workers * run.per_worker for run in pool.runs), max(0.0, base - own))
    guaranteed = sum(run.guaranteed * run.per_worker for run in pool.runs)

    def needed(serving: float, training: float) -> int:
        return min(spec.machines.at_most, math.ceil((serving + training - base - EPSILON) / each))

    wanted, have = pool.wanted, len(pool.coming) + sum(1 for node in pool.nodes if node.bought and not node.closing)
    lasting = pool.demand.least(now - spec.machines.buy_after_s)
    target = max(needed(wanted, guaranteed), needed(lasting, usable))
    if target > have:
        why = f"serving wants {wanted:g} accelerators, at least {lasting:g} for {spec.machines.buy_after_s:g} s"
        plan.add(Buy(f"{why}; training could use {usable:g} of {base:g}", target - have, each))
        return
    peak = max(wanted, pool.demand.peak(now - spec.machines.return_after_s))
    surplus = have - max(0, needed(peak, usable))
    for node in _without_serving(pool)[: max(0, surplus)]:
        why = f"serving wanted at most {peak:g} accelerators for {spec.machines.return_after_s:g} s"
        plan.add(Return(f"{why}; {base:g} of the pool's own are enough", node))


def _without_serving(pool: Snapshot) -> list[str]:
    """Bought machines on which no replica runs or is about to, those with the fewest workers first."""
    serving = {node for app in pool.apps for node in app.running} | {promise.node for promise in pool.reservations}
    workers = {node.name: sum(run.workers.get(node.name, 0) for run in pool.runs) for node in pool.nodes}
    spare = [node.name for node in pool.nodes if node.bought and not node.closing and node.name not in serving]
    return sorted(spare, key=lambda name: (workers[name], name))
