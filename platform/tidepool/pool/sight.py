"""What Ray itself says is there and held: the truth that the coordinator's books are checked against."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tidepool.pool.state import EPSILON, App, Node, Reservation, Run, Snapshot

Places = Mapping[str, int]
"""How many, by node."""

REPLICA = "ServeReplica:"
"""How the class of a Serve replica's actor begins; application and deployment follow."""
WORKER = "RayTrainWorker"
"""The class of Ray Train's workers."""


@dataclass(frozen=True, slots=True)
class Sight:
    """The cluster at one moment. Nodes go by Ray's ids, amounts are of one accelerator type."""

    total: Mapping[str, float]
    """Of each node that is alive and has any."""
    free: Mapping[str, float]
    replicas: Mapping[str, Places] = field(default_factory=dict)
    """Of each application, living ones."""
    pending: Mapping[str, int] = field(default_factory=dict)
    """Replicas of each application that Serve has asked for and that don't live yet."""
    workers: Mapping[str, int] = field(default_factory=dict)
    """Train workers, living or about to, of each driver, by its job's id."""


def look(accelerator: str) -> Sight:
    """See what the connected cluster has and holds: a few milliseconds, straight from Ray's own tables."""
    import ray
    from ray._private import state

    alive = [node for node in ray.nodes() if node["Alive"]]
    total = {node["NodeID"]: float(node["Resources"].get(accelerator, 0)) for node in alive}
    available = state.available_resources_per_node()
    return seen(
        {node: amount for node, amount in total.items() if amount},
        {node: float(available.get(node, {}).get(accelerator, 0)) for node, amount in total.items() if amount},
        state.actors(actor_state_name="ALIVE").values(),
        state.actors(actor_state_name="PENDING_CREATION").values(),
    )


def seen(
    total: Mapping[str, float],
    free: Mapping[str, float],
    alive: Iterable[Mapping[str, Any]],
    pending: Iterable[Mapping[str, Any]],
) -> Sight:
    """A sight, from nodes and from rows of Ray's actor table."""
    replicas: dict[str, Counter[str]] = defaultdict(Counter)
    waiting: Counter[str] = Counter()
    workers: Counter[str] = Counter()
    for actors, living in ((alive, True), (pending, False)):
        for actor in actors:
            kind, job = str(actor["ActorClassName"]), str(actor["JobID"])
            if kind == WORKER:
                workers[job] += 1
            elif kind.startswith(REPLICA) and living:
                replicas[_application(kind)][actor["Address"]["NodeID"]] += 1
            elif kind.startswith(REPLICA):
                waiting[_application(kind)] += 1
    return Sight(total, free, {app: dict(nodes) for app, nodes in replicas.items()}, dict(waiting), dict(workers))


def reconciled(
    pool: Snapshot, new: Iterable[Run], sight: Sight, held: Mapping[str, Places], starting: Collection[str]
) -> Snapshot:
    """The pool, with `new` runs, set right by what Ray says: what is there counts more than what was promised.

    `held` names the workers of each run that are processes or have been told to start; the others, and reservations,
    keep their room only if it is still there, older promises first. `starting` names runs whose processes Ray doesn't
    know yet.
    """
    apps = tuple(_as_seen(app, sight) for app in pool.apps)
    runs = [_on(run, sight.total) for run in (*pool.runs, *new)]
    told = {name: _only(places, sight.total) for name, places in held.items()}
    firm = {name: places for name, places in told.items() if name not in starting}
    nodes = tuple(_node(pool, name, sight, apps, runs, told, firm) for name in sight.total)
    room = {node.name: node.total - _held(node.name, apps, runs, firm) for node in nodes}
    kept: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: run.name not in told):  # who was told to start goes before who waits
        run = _with_processes(run, firm.get(run.name, {}))
        waiting = {node: count - firm.get(run.name, {}).get(node, 0) for node, count in run.workers.items()}
        if any(count > 0 and count * run.per_worker > room[node] + EPSILON for node, count in waiting.items()):
            run = _without_waiting(run, firm.get(run.name, {}))  # somebody took its place before it stood there
        else:
            for node, count in waiting.items():
                room[node] -= count * run.per_worker
        kept[run.name] = run
    vacating: dict[str, float] = {}
    for run in runs:
        for node, count in kept[run.name].leaving.items():
            vacating[node] = vacating.get(node, 0.0) + count * run.per_worker
    reservations = _that_fit(_still_due(pool, apps), room, vacating)
    in_order = tuple(kept[run.name] for run in runs)
    return replace(pool, nodes=nodes, apps=apps, runs=in_order, reservations=tuple(reservations))


def is_free_again(pool: Snapshot, places: Places, sight: Sight, held: Mapping[str, Places]) -> bool:
    """Whether Ray has taken back what was at `places`, which lags behind the end of the processes there.

    `held` are the workers that are still there. What replicas on their way may have taken already counts as free.
    """
    apps = tuple(_as_seen(app, sight) for app in pool.apps)
    coming = _coming(pool, sight)
    return all(
        sight.free[node.name] + _held(node.name, apps, pool.runs, held) + coming >= node.total - EPSILON
        for node in pool.nodes
        if node.name in places and node.name in sight.total
    )


def _application(kind: str) -> str:
    return kind.removeprefix(REPLICA).split(":")[0]


def _as_seen(app: App, sight: Sight) -> App:
    running = _only(sight.replicas.get(app.name, {}), sight.total)
    return replace(app, running=running, pending=sight.pending.get(app.name, 0))


def _on(run: Run, nodes: Mapping[str, float]) -> Run:
    """The run without what was on nodes that are gone."""
    return replace(
        run,
        workers=_only(run.workers, nodes),
        leaving=_only(run.leaving, nodes),
        joining=_only(run.joining, nodes),
    )


def _only(places: Places, nodes: Mapping[str, float]) -> dict[str, int]:
    return {node: count for node, count in places.items() if node in nodes}


def _with_processes(run: Run, here: Places) -> Run:
    """The run with all processes that it has: those that the books didn't expect are to go."""
    extra = {node: more for node, count in here.items() if (more := count - run.workers.get(node, 0)) > 0}
    workers = {node: run.workers.get(node, 0) + extra.get(node, 0) for node in {**run.workers, **extra}}
    leaving = {node: run.leaving.get(node, 0) + extra.get(node, 0) for node in {**run.leaving, **extra}}
    return replace(run, workers=workers, leaving=leaving) if extra else run


def _without_waiting(run: Run, here: Places) -> Run:
    """The run with its processes alone; all of them go where too few for its minimum would stay."""
    leaving = {node: min(count, here.get(node, 0)) for node, count in run.leaving.items() if here.get(node)}
    staying = sum(here.values()) - sum(leaving.values())
    leaving = dict(here) if 0 < staying < run.min_workers else leaving
    return replace(run, workers=dict(here), joining={}, leaving=leaving)


def _node(
    pool: Snapshot,
    name: str,
    sight: Sight,
    apps: Collection[App],
    runs: Collection[Run],
    told: Mapping[str, Places],
    firm: Mapping[str, Places],
) -> Node:
    """The node with what the pool may hand out: what is free and what is the pool's own, nothing that others hold.

    While Ray reserves room for a run that was told to start, or starts a replica, it is neither free nor seen as held.
    """
    before = next((node for node in pool.nodes if node.name == name), Node(name, 0.0))
    own = max(sight.free[name] + _held(name, apps, runs, firm), _held(name, apps, runs, told))
    own = max(own, min(before.total, own + _coming(pool, sight)))
    return replace(before, total=min(sight.total[name], own))


def _coming(pool: Snapshot, sight: Sight) -> float:
    """Accelerators of replicas that don't live yet: Ray may have given them theirs already."""
    return sum(sight.pending.get(app.name, 0) * app.per_replica for app in pool.apps)


def _held(node: str, apps: Iterable[App], runs: Iterable[Run], held: Mapping[str, Places]) -> float:
    replicas = sum(app.running.get(node, 0) * app.per_replica for app in apps)
    return replicas + sum(held.get(run.name, {}).get(node, 0) * run.per_worker for run in runs)


def _still_due(pool: Snapshot, apps: Iterable[App]) -> list[Reservation]:
    """Reservations of which no replica has come: a new replica ends one of its application's, on its node if it can."""
    due = list(pool.reservations)
    for app in apps:
        before = pool.app(app.name).running
        for node, count in app.running.items():
            for _ in range(max(0, count - before.get(node, 0))):
                own = sorted((r for r in due if r.app == app.name), key=lambda r: (r.node != node, r.awaited))
                due = [reservation for reservation in due if reservation not in own[:1]]
    return due


def _that_fit(
    reservations: Iterable[Reservation], room: dict[str, float], vacating: dict[str, float]
) -> list[Reservation]:
    """Those that there is room for, now or when leaving workers are gone; of two that don't fit together the older."""
    fitting = []
    for reservation in reservations:
        node = reservation.node
        if node not in room:
            continue
        now = min(reservation.accelerators - reservation.awaited, max(0.0, room[node]))
        later = reservation.accelerators - now
        if later <= vacating.get(node, 0.0) + EPSILON:
            room[node] -= now
            vacating[node] = vacating.get(node, 0.0) - later
            fitting.append(replace(reservation, awaited=later))
    return fitting
