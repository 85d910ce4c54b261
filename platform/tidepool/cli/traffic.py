"""`tidepool canary`, `shadow`, `traffic` and `replay`: versions beside the champion, and what they make of requests."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from tidepool.cli.announce import announce
from tidepool.cli.models import registry
from tidepool.cli.output import JSON, as_json, table, when

if TYPE_CHECKING:
    from tidepool.registry.entities import Shift

NAME = typer.Argument(help="The registered model.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (canary, shadow, traffic, replay):
        app.command()(verb)


def canary(
    name: str = NAME,
    version: int = typer.Argument(help="The version that is to answer a part of the requests."),
    percent: float = typer.Option(..., min=0, max=100, help="Of the requests; 0 ends it."),
    json: bool = JSON,
) -> None:
    """Let a version answer some of the requests: for one request key always the same version."""
    _share(name, version, "canary", percent, "answers {:g} % of the requests", json)


def shadow(
    name: str = NAME,
    version: int = typer.Argument(help="The version that is to be asked beside the champion."),
    percent: float = typer.Option(100.0, min=0, max=100, help="Of the champion's requests; 0 ends it."),
    json: bool = JSON,
) -> None:
    """Ask a version what the champion is asked, and compare: its answers are counted and never returned."""
    _share(name, version, "shadow", percent, "is asked beside the champion in {:g} % of the requests", json)


def traffic(name: str = NAME, json: bool = JSON) -> None:
    """Show who answers a model's requests, what was seen of canary and shadow, and what was shifted when and why."""
    from tidepool.registry.entities import CANARY, SHADOW

    model = registry().model(name)
    shares = {alias: share for alias in (CANARY, SHADOW) if (share := model.share(alias))}
    watched = _watched(name)
    shifts = [(alias, shift) for alias, shifts in model.shifts.items() for shift in shifts]
    shifts.sort(key=lambda row: row[1].at)
    if json:
        document = {
            "name": name,
            "champion": model.aliases.get("champion"),
            "shares": {alias: asdict(share) for alias, share in shares.items()},
            "watched": watched,
            "shifts": [{"as": alias, **asdict(shift)} for alias, shift in shifts],
        }
        as_json(document)
        return
    print(f"{name}: version {model.aliases.get('champion', 'none')} is the champion")
    for alias, share in shares.items():
        print(f"version {share.version} is {alias} with {share.percent:g} % since {when(share.at)}")
    for alias, seen in watched.items():
        if alias not in shares:
            continue  # it has ended: the shifts below say how
        counts = ", ".join(f"{seen[count]} {count}" for count in ("answers", "errors", "slow", "compared", "disagreed"))
        print(f"{alias} {seen['version']}: {counts}")
        if seen["failure"]:
            print(f"{alias} {seen['version']}: can't be loaded, {seen['failure']}")
        if seen["verdict"]:
            print(f"{alias} {seen['version']}: {seen['verdict']['decision']}, {seen['verdict']['reason']}")
    rows = [[when(shift.at), alias, shift.version, _given(shift), shift.why] for alias, shift in shifts]
    table(["when", "as", "version", "share", "why"], rows, title="shifts")


def replay(
    name: str = NAME,
    version: int = typer.Argument(help="The candidate."),
    max_disagreement: float | None = typer.Option(
        None,
        min=0,
        max=1,
        help="Leave with exit code 7 if it disagrees with the champion on a larger share of the rows.",
    ),
    json: bool = JSON,
) -> None:
    """Run a version over the request log, offline, and report by slice where it disagrees with the champion."""
    from tidepool.cluster.local import connect
    from tidepool.settings import Settings

    settings = Settings()
    # Ray says on standard output when it starts workers; that is for the report.
    with contextlib.redirect_stdout(sys.stderr), connect(settings):
        from tidepool.serve.rehearsal import rehearse

        report = rehearse(settings, name, version)
    if json:
        as_json(report.to_json())
    else:
        parts = [("all", "", report.whole), *((part.column, part.value, part) for part in report.slices)]
        rows = [[column, value, p.rows, p.disagreed, p.failed, f"{p.disagreement:.2%}"] for column, value, p in parts]
        title = f"{name}: version {version} beside version {report.champion}, {report.skipped} rows skipped"
        table(["slice", "value", "rows", "disagreed", "failed", "share"], rows, title=title)
    if max_disagreement is not None:
        report.check(max_disagreement)


def _given(shift: Shift) -> str:
    return "is champion" if shift.why.startswith("promote") else f"{shift.percent:g} %"


def _watched(name: str) -> dict[str, Any]:
    """What the replicas have seen; nothing if no cluster runs."""
    from tidepool.cluster.local import connect
    from tidepool.errors import NoCluster
    from tidepool.settings import Settings

    try:
        with connect(Settings()):
            from tidepool.serve.versions import watched

            return watched(name)
    except NoCluster:
        return {}


def _share(name: str, version: int, alias: str, percent: float, does: str, json: bool) -> None:
    shifted = registry().shift(name, version, alias, percent)
    if json:
        as_json({**shifted.to_json(), "percent": percent})
    elif percent:
        print(f"{name} version {version} {does.format(percent)}")
    else:
        print(f"{name} version {version} is no {alias} any more")
    announce(name)
