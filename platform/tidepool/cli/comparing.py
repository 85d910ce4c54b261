"""`tidepool pool simulate` and `tidepool pool replay`: the shared pool beside other ways to use the accelerators."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tidepool.cli.output import as_json, table

if TYPE_CHECKING:
    from tidepool.pool.tide import Tide
    from tidepool.replay.regimes import Outcome, Regime
    from tidepool.replay.stage import Play

JSON = typer.Option(False, "--json", help="Print JSON.")
DRAW = typer.Option(None, help="Folder for a picture of each: who held what over time. HTML, and PNG with matplotlib.")


def simulate(
    accelerators: int = typer.Option(256, min=4, help="Size of the pool."),
    days: float = typer.Option(3.0, min=0.1, help="Length of what is simulated."),
    jobs: Path | None = typer.Option(None, help="Training jobs as in Philly's trace; generated if not given."),
    requests: Path | None = typer.Option(None, help="Requests as in Azure's trace; generated if not given."),
    draw: Path | None = DRAW,
    as_document: bool = JSON,
) -> None:
    """Run the pool's policy on simulated accelerators: queueing, completion, late requests, moves."""
    from rich.console import Console

    from tidepool.pool.simulate import Scenario, simulate

    with Console(stderr=True).status(f"{accelerators:,} accelerators, {days:g} days, four regimes"):
        found = simulate(Scenario(accelerators=accelerators, days=days, jobs=jobs, requests=requests))
    if draw:
        _draw(draw, {one.regime: one.drawn(accelerators) for one in found.outcomes})
    if as_document:
        as_json([{**dataclasses.asdict(one), "tide": one.tide.tolist()} for one in found.outcomes])
    else:
        _beside_one_another(found.HEADINGS, found.rows())


def replay(
    trace: Path | None = typer.Argument(None, help="Requests: a CSV with a column TIMESTAMP; generated if not given."),
    compress: float = typer.Option(60.0, min=1, help="Play the trace so many times as fast."),
    seconds: float = typer.Option(60.0, min=10, help="Length of the replay."),
    wave: float | None = typer.Option(None, min=1, help="A wave every so many seconds, in place of a trace."),
    peak: float = typer.Option(0.7, min=0.01, help="Of requests, over what all accelerators could answer."),
    accelerators: int = typer.Option(4, min=2, help="Logical accelerators of the local cluster."),
    only: list[str] = typer.Option(
        [], help="Play this one alone: tidepool, 'split 2 + 2', 'stock Ray'; may be repeated."
    ),
    http_port: int = typer.Option(18000, help="HTTP port of the replay's own clusters."),
    draw: Path | None = DRAW,
    as_document: bool = JSON,
) -> None:
    """Drive a real deployment with a trace beside a real training run: shared, split, and in stock Ray.

    Each way gets a cluster of its own with logical accelerators, one after another; running ones aren't touched. Models
    that fill an accelerator are played by ones that wait.
    """
    from rich.console import Console

    from tidepool.replay.regimes import HEADINGS, regimes, rows
    from tidepool.replay.stage import Play

    play = Play(accelerators, seconds, compress, str(trace.resolve()) if trace else None, wave, peak=peak)
    print(f"{len(play.due_s):,} requests in {seconds:g} s", file=sys.stderr)
    outcomes = []
    for regime in (one for one in regimes(accelerators) if one.name in (only or [one.name])):
        with Console(stderr=True).status(regime.name):
            outcomes.append(_performed(play, regime, http_port))
    if draw:
        _draw(draw, {one.regime: one.drawn() for one in outcomes})
    if as_document:
        as_json([one.to_json() for one in outcomes])
    else:
        _beside_one_another(HEADINGS, rows(outcomes))


def _performed(play: Play, regime: Regime, http_port: int) -> Outcome:
    """The outcome of one regime, from a process and a home of its own."""
    from tidepool.errors import ClusterError
    from tidepool.replay.regimes import Outcome

    told = {
        "play": dataclasses.asdict(play),
        "regime": dataclasses.asdict(regime),
        "ports": {"http": http_port, "dashboard": http_port + 2, "grpc": http_port + 1},
        "project": str(Path.cwd()),
    }
    with tempfile.TemporaryDirectory(prefix="tidepool-replay-") as home:
        elsewhere = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
        environment = {name: value for name, value in os.environ.items() if name not in elsewhere}
        stage = subprocess.run(
            [sys.executable, "-m", "tidepool.replay.stage", json.dumps(told)],
            env={**environment, "TIDEPOOL_HOME": home},
            capture_output=True,
            text=True,
        )
    if stage.returncode:
        lines = stage.stderr.strip().splitlines() or ["no output"]
        raise ClusterError(f"{regime.name} ended early", seen=lines[-1][:500], remedy="see `tidepool doctor`")
    return Outcome(**json.loads(stage.stdout.splitlines()[-1]))


def _beside_one_another(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A column for each regime: their figures are more than fit side by side."""
    names, *figures = zip(headings, *rows, strict=True)
    table(names, figures, title="figures")


def _draw(folder: Path, tides: dict[str, Tide]) -> None:
    from importlib.util import find_spec

    from tidepool.pool.tide import draw

    for name, tide in tides.items():
        for suffix in ("html", "png") if find_spec("matplotlib") else ("html",):
            draw(tide, folder / f"{name.replace(' ', '-').replace(',', '')}.{suffix}")
