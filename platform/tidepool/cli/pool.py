"""`tidepool pool` and `tidepool pool ledger`: who has what, and what moved. `comparing` has the group's other verbs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from tidepool.cli import comparing
from tidepool.cli.output import as_json, table, when

if TYPE_CHECKING:
    from tidepool.pool.ledger import Entry
    from tidepool.pool.state import Snapshot

WIDTH = 40
"""Characters of a bar."""
SERVING, TRAINING, RESERVED, FREE = "█", "▓", "▒", "·"

JSON = typer.Option(False, "--json", help="Print JSON.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(help="Show who has which accelerators, now.", invoke_without_command=True)
    group.callback()(pool)
    for verb in (ledger, comparing.simulate, comparing.replay):
        group.command()(verb)
    app.add_typer(group, name="pool")


def pool(context: typer.Context, json: bool = JSON) -> None:
    """Show who has which accelerators, now: a bar a node, a row for each application and run."""
    if context.invoked_subcommand is not None:
        return
    snapshots = _snapshots()
    if json:
        as_json([asdict(snapshot) for snapshot in snapshots])
        return
    if not snapshots:
        print("nobody trains or serves in the pool yet")
    for snapshot in snapshots:
        print("\n".join(bars(snapshot)))
        rows: list[list[object]] = []
        for app in snapshot.apps:
            note = f"wants {app.asks} {'replica' if app.asks == 1 else 'replicas'}"
            note += f", {app.pending} wait{'s' if app.pending == 1 else ''}" if app.pending else ""
            rows.append([app.name, "serving", f"{app.replicas * app.per_replica:g}", note])
        for run in snapshot.runs:
            note = f"{run.state}, {run.min_workers if not run.parkable else 0} to {run.max_workers} workers"
            rows.append([run.name, "training", f"{sum(run.workers.values()) * run.per_worker:g}", note])
        table(["name", "does", snapshot.accelerator, "state"], rows, title="applications or runs")


def ledger(
    last: int = typer.Option(20, min=1, help="Show so many moves, the newest."),
    json: bool = JSON,
) -> None:
    """List what moved, when, why, and what it cost."""
    from tidepool.pool.coordinator import ledger_path
    from tidepool.pool.ledger import read
    from tidepool.settings import Settings

    entries = read(ledger_path(Settings()))[-last:]
    if json:
        as_json([asdict(entry) for entry in entries])
        return
    rows = [
        [
            when(entry.at["promised"]),
            entry.kind,
            entry.run or entry.app or "",
            "" if entry.to is None else f"{entry.was} -> {entry.to}",
            entry.phase,
            _cost(entry),
            entry.outcome or entry.why,
        ]
        for entry in entries
    ]
    table(["at", "move", "who", "workers", "is", "cost", "why"], rows, title="moves")


def _cost(entry: Entry) -> str:
    parts = [
        f"released in {entry.release_s:.2f} s" if entry.release_s is not None else "",
        f"pause {entry.pause_s:.2f} s" if entry.pause_s else "",
        f"{entry.steps_redone} steps redone" if entry.steps_redone else "",
    ]
    return ", ".join(filter(None, parts))


def bars(pool: Snapshot) -> Iterator[str]:
    """A bar a node: what serving holds, what training holds, what is promised to serving, what is free.

    >>> from tidepool.pool.state import App, Node, Run, Snapshot
    >>> one = Snapshot((Node("a", 4),), (App("app", 1, {"a": 1}),), (Run("run", 1, 4, {"a": 2}),), accelerator="slot")
    >>> list(bars(one))[1]
    'a        ██████████▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓··········  1 + 2 of 4'
    """
    yield f"{pool.accelerator}: {SERVING} serving  {TRAINING} training  {RESERVED} promised  {FREE} free"
    for node in pool.nodes:
        serving = sum(app.running.get(node.name, 0) * app.per_replica for app in pool.apps)
        training = sum(run.workers.get(node.name, 0) * run.per_worker for run in pool.runs)
        promised = sum(r.accelerators - r.awaited for r in pool.reservations if r.node == node.name)
        scale = WIDTH / max(node.total, 1e-9)
        bar, upto = "", 0.0
        for amount, sign in ((serving, SERVING), (training, TRAINING), (promised, RESERVED)):
            upto += amount
            bar += sign * (round(upto * scale) - len(bar))
        yield f"{node.name[:8]:8} {bar:{FREE}<{WIDTH}}  {serving:g} + {training:g} of {node.total:g}"


def _snapshots() -> list[Snapshot]:
    import ray

    from tidepool.cluster.local import connect
    from tidepool.errors import ClusterError
    from tidepool.pool import coordinator
    from tidepool.settings import Settings

    with connect(Settings()):
        handle: Any = coordinator.running()
        if handle is None:
            raise ClusterError("no coordinator is running: training and serving share nothing", remedy="`tidepool up`")
        snapshots: list[Snapshot] = ray.get(handle.view.remote())
        return snapshots
