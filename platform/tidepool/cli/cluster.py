"""`tidepool up`, `down`, `status`, `doctor` and `cluster validate`: the cluster, started, ended and looked at."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tidepool.cli.equip import equip
from tidepool.cli.output import JSON, as_json, command, table, waiting

if TYPE_CHECKING:
    from tidepool.cluster.doctor import Check
    from tidepool.cluster.local import LocalCluster
    from tidepool.cluster.ports import Ports
    from tidepool.cluster.status import Status
    from tidepool.settings import Settings

HTTP_PORT = typer.Option(8000, help="Port for inference requests, on this machine only.")
GRPC_PORT = typer.Option(None, help="Port for gRPC, on this machine only; default the one after the HTTP port.")
DASHBOARD_PORT = typer.Option(8265, help="Port of Ray's dashboard and of its jobs, on this machine only.")
MOST_NAMED = 3
"""Models in a hint."""
COLOURS = {"OK": "green", "WARN": "yellow", "FAIL": "red"}


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (up, down, status, doctor):
        app.command()(verb)
    files = typer.Typer(help="Clusters of many machines.", no_args_is_help=True)
    files.command()(validate)
    files.command()(equip)
    app.add_typer(files, name="cluster")


def up(
    http_port: int = HTTP_PORT,
    dashboard_port: int = DASHBOARD_PORT,
    grpc_port: int | None = GRPC_PORT,
    num_cpus: int | None = typer.Option(None, help="CPUs to claim; default the cores, but at least 8."),
    num_gpus: int | None = typer.Option(None, help="GPUs to claim; default those that are there."),
    resources: str = typer.Option("{}", help="Other resources, as JSON: '{\"slot\": 4}'."),
    as_document: bool = JSON,
) -> None:
    """Start a local cluster with its HTTP front end; if one runs already, say where it is."""
    from tidepool.cluster.ports import Ports
    from tidepool.settings import Settings

    settings, amounts, began = Settings(), _resources(resources), time.monotonic()
    ports = Ports(http_port, dashboard_port, grpc_port)
    cluster, fresh = ensure_up(settings, ports, num_cpus, num_gpus, amounts)
    if not fresh and (num_cpus is not None or num_gpus is not None or amounts):
        print("it runs already, as it was started: `tidepool down` first, to start it otherwise", file=sys.stderr)
    if as_document:
        as_json({**dataclasses.asdict(cluster), "started": fresh})
        return
    verb = f"is up, after {time.monotonic() - began:.1f} s" if fresh else f"has been up since {cluster.started_at}"
    _print_up(settings, cluster, verb)


def down(as_document: bool = JSON) -> None:
    """End the local cluster: every process that it started, HAProxy too. Data, models and keys stay."""
    from tidepool.cluster import local
    from tidepool.settings import Settings

    began = time.monotonic()
    if other := local.elsewhere(Settings()):
        print(f"{' '.join(other)} isn't this home's cluster: it is left alone", file=sys.stderr)
    ended = local.down(Settings())
    if as_document:
        as_json({"ended": ended})
        return
    took = f"{ended} processes ended in {time.monotonic() - began:.1f} s"
    print(f"tidepool is down: {took}" if ended else "no cluster was running")


def status(as_document: bool = JSON) -> None:
    """Show nodes, resources, applications and ports of the running cluster."""
    from tidepool.cluster import local
    from tidepool.cluster.status import status as status_of
    from tidepool.errors import NoCluster
    from tidepool.settings import Settings

    settings = Settings()
    found = status_of(settings)
    try:
        cluster = None if os.environ.get("RAY_ADDRESS") else local.running(settings)
    except NoCluster:
        cluster = None  # it went down meanwhile
    if as_document:
        as_json({"cluster": cluster and dataclasses.asdict(cluster), **dataclasses.asdict(found)})
    else:
        _print_status(found, cluster)


def doctor(as_document: bool = JSON) -> None:
    """Examine this machine: versions, ports, disk, memory, leftovers. Exit code 1 if a check fails."""
    from tidepool.cluster.doctor import examine
    from tidepool.settings import Settings

    checks = examine(Settings(), Path.cwd())
    if as_document:
        as_json([dataclasses.asdict(check) for check in checks])
    else:
        _print_checks(checks)
    if any(check.level == "FAIL" for check in checks):
        raise typer.Exit(1)


def validate(
    file: Path = typer.Argument(Path("cluster.yaml"), help="A configuration of Ray's cluster launcher."),
    as_document: bool = JSON,
) -> None:
    """Check a cluster.yaml strictly and offline, before `ray up` spends money on it."""
    from tidepool.cluster.launcher import placeholders
    from tidepool.cluster.launcher import validate as validate_file

    validate_file(file)
    if as_document:
        as_json({"file": file, "to_fill_in": [{"line": number, "text": line} for number, line in placeholders(file)]})
        return
    print(f"{file} is in order")
    for number, line in placeholders(file):
        print(f"  to fill in, line {number}: {line}")


def ensure_up(
    settings: Settings,
    ports: Ports,
    num_cpus: int | None = None,
    num_gpus: int | None = None,
    resources: dict[str, float] | None = None,
    start_serving: Callable[[Settings, int, int], None] | None = None,
) -> tuple[LocalCluster, bool]:
    """A running local cluster with its HTTP front end, and whether it was started now; workers import from here.

    `start_serving` gets settings and the ports for HTTP and gRPC in a process that is connected; default
    `tidepool.serve.app.start`. If it fails, a cluster that was started for it is ended. What else this process does
    goes to this cluster too: variables that name another are taken out of its environment.
    """
    from tidepool.cluster import local
    from tidepool.cluster.environment import ELSEWHERE
    from tidepool.cluster.ports import is_free
    from tidepool.errors import NoCluster

    for variable in ELSEWHERE:
        if elsewhere := os.environ.pop(variable, None):
            print(f"{variable} is {elsewhere}: unset it, or other commands go there", file=sys.stderr)
    with local.alone(settings, "up"):
        try:
            cluster, fresh = local.running(settings), False
        except NoCluster:
            with waiting("starting Ray"):
                cluster, fresh = local.up(settings, ports, num_cpus, num_gpus, resources or {}, Path.cwd()), True
        if not fresh and not is_free(cluster.http_port):
            return cluster, False
        try:
            with waiting("starting the HTTP front end"), local.connect(settings):
                (start_serving or _start_serving())(settings, cluster.http_port, cluster.ports["grpc"])
        except BaseException:
            if fresh:
                local.down(settings)
            raise
        return cluster, fresh


def _start_serving() -> Callable[[Settings, int, int], None]:
    from tidepool.serve.app import start

    return start


def _resources(text: str) -> dict[str, float]:
    try:
        amounts = {str(name): float(amount) for name, amount in json.loads(text).items()}
    except (ValueError, AttributeError, TypeError):
        raise typer.BadParameter('needs JSON like {"slot": 4}', param_hint="--resources") from None
    return amounts


def _print_up(settings: Settings, cluster: LocalCluster, verb: str) -> None:
    from rich.console import Console

    from tidepool.cluster.environment import default_home

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]tidepool {verb}[/]")
    console.print(f"  requests   http://127.0.0.1:{cluster.http_port}/v2  ({cluster.front_end})")
    console.print(f"  gRPC       127.0.0.1:{cluster.ports['grpc']}")
    console.print(f"  dashboard  {cluster.dashboard}")
    console.print(f"  state      {settings.root}")
    if settings.root != default_home() or cluster.ports["dashboard"] != 8265:
        console.print("For Ray's own commands in this shell:")
        console.print(f"  export RAY_API_SERVER_ADDRESS={cluster.dashboard} RAY_DASHBOARD_ADDRESS={cluster.dashboard}")
        console.print(f"  export RAY_ADDRESS='{cluster.address}'")
    console.print(f"Next: {command()} {next_step(*standing(cluster.http_port))}")


def next_step(champions: list[str], served: set[str]) -> str:
    """What to type once a cluster is up, given the models that have a champion and those in service.

    >>> next_step(["digits", "iris", "tales"], {"tales"})
    'deploy digits  # or iris'
    """
    models = [name for name in champions if name not in served]
    if not models:
        return "status" if served else "run deployments/digits/spec.yaml"
    first, *others = models if len(models) <= MOST_NAMED else [*models[:MOST_NAMED], "..."]
    return f"deploy {first}  # or {', '.join(others)}" if others else f"deploy {first}"


def standing(http_port: int) -> tuple[list[str], set[str]]:
    """The models that have a champion, and those in service; none where that can't be told."""
    from tidepool.cli.client import in_service
    from tidepool.cli.models import registry
    from tidepool.errors import TidepoolError

    try:
        return [model.name for model in registry().models() if model.champion], in_service(http_port)
    except TidepoolError:
        return [], set()


def _print_status(found: Status, cluster: LocalCluster | None) -> None:
    from rich.console import Console

    from tidepool.cluster.resources import accelerators

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]cluster[/]    {found.address}")
    if cluster is not None:
        console.print(f"  since      {cluster.started_at}")
        console.print(f"  requests   http://127.0.0.1:{cluster.http_port}/v2  ({cluster.front_end})")
        console.print(f"  gRPC       127.0.0.1:{cluster.ports['grpc']}")
        console.print(f"  dashboard  {cluster.dashboard}")
    nodes = [
        (node["address"], "alive" if node["alive"] else "gone", _amounts(_computing(node["resources"])))
        for node in found.nodes
    ]
    table(("node", "state", "has"), nodes, "nodes")
    chosen = ("CPU", *accelerators({name: total for name, (_, total) in found.used.items()}))
    rows = [(name, f"{used:g}", f"{total:g}") for name in chosen for used, total in [found.used.get(name, (0, 0))]]
    table(("resource", "reserved", "of"), rows, "resources")
    applications = [
        (each.name, each.status, each.route_prefix, _replicas(each.replicas), each.message[:60])
        for each in found.applications
    ]
    table(("application", "status", "route", "replicas", "message"), applications, "applications")


def _computing(resources: dict[str, float]) -> dict[str, float]:
    from tidepool.cluster.resources import accelerators

    return {"CPU": resources.get("CPU", 0.0), **accelerators(resources)}


def _amounts(resources: dict[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _replicas(deployments: dict[str, dict[str, int]]) -> str:
    return "; ".join(
        f"{name}: " + (", ".join(f"{count} {state.lower()}" for state, count in states.items()) or "none")
        for name, states in deployments.items()
    )


def _print_checks(checks: list[Check]) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for check in checks:
        console.print(f"[{COLOURS[check.level]}]{check.level:<4}[/]  {check.name:<14} {check.seen}")
        if check.remedy:
            console.print(f"      {'':<14} remedy: {check.remedy}")
