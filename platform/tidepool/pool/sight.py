"""What Ray itself says is there and held: the truth that the coordinator's books are checked against."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tidepool.pool import machines
from tidepool.pool.state import EPSILON, App, Node, Reservation, Run, Snapshot

Places = Mapping[str, int]
"""How many, by node."""

REPLICA = "ServeReplica:"
"""How the class of a Serve replica's actor begins; application and deployment follow."""
WORKER = "RayTrainWorker"
"""The class of Ray Train's workers."""
MEMBER = "tidepool-member"
"""How the name of a live run's member begins; the run, the node and what makes it unique follow, after colons."""


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
    """Ray Train's workers, living or about to, of each driver, by its job's id."""
    members: Mapping[str, Places] = field(default_factory=dict)
    """Of each live run, living ones."""
    hired: Mapping[str, Places] = field(default_factory=dict)
    """Of each live run, those that don't live yet."""

    bought: Collection[str] = ()
    """Nodes that the cluster autoscaler added at the pool's wish."""

    def known(self, run: str) -> Places:
        """Members of a live run, living or about to."""
        return dict(Counter(self.members.get(run, {})) + Counter(self.hired.get(run, {})))


def look(accelerator: str) -> Sight:
    """See what the connected cluster has and holds: a few milliseconds, straight from Ray's own tables."""
    import ray
    from ray._private import state

    alive = [node for node in ray.nodes() if node["Alive"]]
    total = {node["NodeID"]: float(node["Resources"].get(accelerator, 0)) for node in alive}
    available = state.available_resources_per_node()
    bought = [node["NodeID"] for node in alive if node["Labels"].get(machines.LABEL) == machines.BOUGHT]
    # In this order, so that one that comes to life in between is seen, and then not counted twice.
    pending, living = (state.actors(actor_state_name=name) for name in ("PENDING_CREATION", "ALIVE"))
    return seen(
        {node: amount for node, amount in total.items() if amount},
        {node: float(available.get(node, {}).get(accelerator, 0)) for node, amount in total.items() if amount},
        living.values(),
        [actor for name, actor in pending.items() if name not in living],
        bought,
    )


def seen(
    total: Mapping[str, float],
    free: Mapping[str, float],
    alive: Iterable[Mapping[str, Any]],
    pending: Iterable[Mapping[str, Any]],
    bought: Collection[str] = (),
) -> Sight:
    """A sight, from nodes and from rows of Ray's actor table."""
    replicas: dict[str, Counter[str]] = defaultdict(Counter)
    waiting: Counter[str] = Counter()
    workers: Counter[str] = Counter()
    members: dict[bool, dict[str, Counter[str]]] = {True: defaultdict(Counter), False: defaultdict(Counter)}
    for actors, living in ((alive, True), (pending, False)):
        for actor in actors:
            kind, job, name = str(actor["ActorClassName"]), str(actor["JobID"]), str(actor["Name"])
            if name.startswith(f"{MEMBER}:"):
                _, run, node, _ = name.split(":")
                members[living][run][node] += 1
            elif kind == WORKER:
                workers[job] += 1
            elif kind.startswith(REPLICA) and living:
                replicas[_application(kind)][actor["Address"]["NodeID"]] += 1
            elif kind.startswith(REPLICA):
                waiting[_application(kind)] += 1
    there, coming = _plain(members[True]), _plain(members[False])
    return Sight(total, free, _plain(replicas), dict(waiting), dict(workers), there, coming, bought)


def most(one: Places, other: Places) -> Places:
    """On each node the larger number."""
    return dict(Counter(one) | Counter(other))


def exceeds(one: Places, other: Places) -> bool:
    """Whether there are more on any node."""
    return any(count > other.get(node, 0) for node, count in one.items())


def departed(held: Places, expected: Places, there: Places, known: Places, leaving: Places) -> Places:
    """How many of the members that a live run held are gone.

    Those that its supervisor doesn't count (`expected`) and Ray doesn't know (`there`). Of those that were to leave,
    such as Ray has known and knows no more: the first replica may stand in their place before the supervisor speaks.
    """
    gone = {}
    for node, count in held.items():
        here = there.get(node, 0)
        unseen = min(known.get(node, 0) - here, leaving.get(node, 0))
        if (some := max(count - max(here, expected.get(node, 0)), unseen)) > 0:
            gone[node] = some
    return gone


def reconciled(
    pool: Snapshot, new: Iterable[Run], sight: Sight, held: Mapping[str, Places], seen: Mapping[str, Places]
) -> Snapshot:
    """The pool, with `new` runs, set right by what Ray says: what is there counts more than what was promised.

    `held` names the workers of each run that are processes or have been told to start; the others, and reservations,
    keep their room only if it is still there, older promises first. `seen` are those of them that Ray knows to live.
    """
    apps = tuple(_as_seen(app, sight) for app in pool.apps)
    runs = [_on(run, sight.total) for run in (*pool.runs, *new)]
    told = {name: _only(places, sight.total) for name, places in held.items()}
    firm = {name: _only(places, sight.total) for name, places in seen.items()}
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
    there = {node.name for node in pool.nodes}
    coming = pool.coming[sum(node.bought and node.name not in there for node in nodes) :]
    return replace(pool, nodes=nodes, apps=apps, runs=in_order, reservations=tuple(reservations), coming=coming)


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


def _plain(counts: Mapping[str, Counter[str]]) -> dict[str, Places]:
    return {name: dict(counter) for name, counter in counts.items()}


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
    before = next((node for node in pool.nodes if node.name == name), None)
    before = before or Node(name, 0.0, bought=name in sight.bought)
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
