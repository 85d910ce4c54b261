"""How promises become facts: a snapshot and one thing that happened give the next snapshot.

A hand-over from training to serving has two phases. `promise` a shrink and a grant: the workers count as leaving, the
accelerators are reserved but awaited. When a worker's process is gone (`left`), its accelerator goes to the oldest
reservation that awaits one there; when the replica holds it (`placed`), the reservation is over. In between nobody else
is promised it, and at no time does it count as free.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tidepool.pool.demand import MEMORY_S
from tidepool.pool.moves import Buy, Grant, Move, Park, Resize, Return, Shrink, Withdraw
from tidepool.pool.state import EPSILON, App, Machine, Node, Reservation, Run, Snapshot


def promise(pool: Snapshot, move: Move, entry: str, now: float) -> Snapshot:
    """The pool after a move was promised; `entry` is the ledger's id for it and becomes that of what it reserves.

    Raises:
        ClusterError: the move doesn't fit the pool: it was decided on another snapshot.
    """
    match move:
        case Grant():
            reservation = Reservation(entry, move.app, move.node, move.accelerators, move.awaited)
            return replace(pool, reservations=(*pool.reservations, reservation))
        case Withdraw():
            return replace(pool, reservations=tuple(r for r in pool.reservations if r.id != move.reservation))
        case Resize():
            run = pool.run(move.run)
            if isinstance(move, Shrink | Park):
                leaving, joining = _more(run.leaving, move.places), _less(run.joining, move.places)
                run = replace(run, leaving=leaving, joining=joining)
            else:
                workers, joining = _more(run.workers, move.places), _more(run.joining, move.places)
                run = replace(run, workers=workers, joining=joining)
            moved = (*(at for at in run.moved if at > now - MEMORY_S), now)
            return replace(pool, runs=_with(pool.runs, replace(run, moved=moved)))
        case Buy():
            machines = tuple(Machine(f"{entry}.{i}", move.accelerators) for i in range(move.machines))
            return replace(pool, coming=(*pool.coming, *machines))
        case Return():
            return replace(pool, nodes=tuple(replace(n, closing=n.closing or n.name == move.node) for n in pool.nodes))
        case _:
            raise TypeError(f"no such move: {move!r}")


def left(pool: Snapshot, run: str, node: str, workers: int = 1) -> Snapshot:
    """Processes of a run's workers are gone, whether they were told to go or died."""
    before = pool.run(run)
    gone = {node: min(workers, before.workers.get(node, 0))}
    after = replace(
        before,
        workers=_less(before.workers, gone),
        leaving=_less(before.leaving, gone),
        joining=_less(before.joining, gone),
    )
    vacated = gone[node] * before.per_worker
    reservations = []
    for reservation in pool.reservations:
        taken = min(vacated, reservation.awaited) if reservation.node == node else 0.0
        vacated -= taken
        reservations.append(replace(reservation, awaited=reservation.awaited - taken))
    return replace(pool, runs=_with(pool.runs, after), reservations=tuple(reservations))


def joined(pool: Snapshot, run: str) -> Snapshot:
    """All workers of a run train."""
    return replace(pool, runs=_with(pool.runs, replace(pool.run(run), joining={})))


def placed(pool: Snapshot, app: str, node: str) -> Snapshot:
    """Ray placed a replica on a node, which need not be the one that was reserved.

    What is there counts more than what was promised: the application's own reservation is over, on this node if it has
    one there. If the node is overfull then, the newest reservations on it are dropped; the next decision renews them.
    """
    before = pool.app(app)
    own = sorted((r for r in pool.reservations if r.app == app), key=lambda r: (r.node != node, r.awaited))
    kept = [r for r in pool.reservations if r not in own[:1]]
    after = replace(before, running=_more(before.running, {node: 1}), pending=max(0, before.pending - 1))
    apps = tuple(after if other.name == app else other for other in pool.apps)
    bare = replace(pool, apps=apps, reservations=())
    return replace(bare, reservations=_that_fit(bare, kept))


def stopped(pool: Snapshot, app: str, node: str) -> Snapshot:
    """A replica's process is gone: its accelerators are free."""
    before = pool.app(app)
    after = replace(before, running=_less(before.running, {node: 1}))
    return replace(pool, apps=tuple(after if other.name == app else other for other in pool.apps))


def ended(pool: Snapshot, run: str) -> Snapshot:
    """A run is over, its last process gone."""
    for node, workers in pool.run(run).workers.items():
        pool = left(pool, run, node, workers)
    return replace(pool, runs=tuple(other for other in pool.runs if other.name != run))


def arrived(pool: Snapshot, node: Node) -> Snapshot:
    """A machine has joined; if it was bought, one that was awaited is there."""
    coming = pool.coming[1:] if node.bought else pool.coming
    return replace(pool, nodes=(*pool.nodes, node), coming=coming)


def lost(pool: Snapshot, node: str) -> Snapshot:
    """A machine is gone with everything on it. A run that has fewer than its minimum left yields the rest."""
    return replace(
        pool,
        nodes=tuple(other for other in pool.nodes if other.name != node),
        apps=tuple(replace(app, running=_off(app.running, node)) for app in pool.apps),
        runs=tuple(_survivors(run, node) for run in pool.runs),
        reservations=tuple(r for r in pool.reservations if r.node != node),
    )


def asked(pool: Snapshot, app: App, now: float) -> Snapshot:
    """An application is new or asks for another number of replicas; the pool remembers the demand."""
    known = any(other.name == app.name for other in pool.apps)
    apps = tuple(app if other.name == app.name else other for other in pool.apps) if known else (*pool.apps, app)
    after = replace(pool, apps=apps)
    return replace(after, demand=pool.demand.then(now, after.wanted))


def _that_fit(bare: Snapshot, reservations: list[Reservation]) -> tuple[Reservation, ...]:
    """The reservations that a pool without any has room for; of two that don't fit together the older."""
    free, vacating = dict(bare.free), dict(bare.vacating)
    fitting = []
    for reservation in reservations:
        node = reservation.node
        now = min(reservation.accelerators - reservation.awaited, max(0.0, free[node]))
        later = reservation.accelerators - now
        if later <= vacating.get(node, 0.0) + EPSILON:
            free[node] -= now
            vacating[node] = vacating.get(node, 0.0) - later
            fitting.append(replace(reservation, awaited=later))
    return tuple(fitting)


def _survivors(run: Run, node: str) -> Run:
    left = replace(
        run, workers=_off(run.workers, node), leaving=_off(run.leaving, node), joining=_off(run.joining, node)
    )
    return replace(left, leaving=left.workers, joining={}) if left.size < left.min_workers else left


def _with(runs: tuple[Run, ...], run: Run) -> tuple[Run, ...]:
    return tuple(run if other.name == run.name else other for other in runs)


def _more(counts: Mapping[str, int], added: Mapping[str, int]) -> dict[str, int]:
    return {node: counts.get(node, 0) + added.get(node, 0) for node in {**counts, **added}}


def _less(counts: Mapping[str, int], gone: Mapping[str, int]) -> dict[str, int]:
    """What is left, without zeros; never below zero."""
    return {node: rest for node, count in counts.items() if (rest := count - gone.get(node, 0)) > 0}


def _off(counts: Mapping[str, int], node: str) -> dict[str, int]:
    return {name: count for name, count in counts.items() if name != node}
