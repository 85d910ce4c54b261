"""`tidepool demo`: from nothing to answered requests, on handwritten digits."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from tidepool.registry.entities import ModelVersion
    from tidepool.settings import Settings

SPEC = Path("deployments/digits/spec.yaml")
SHADES = " ░▒▓█"
SHOWN = 10
TIMED = 200


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(demo)


def demo(
    http_port: int = typer.Option(8000, help="Port of the HTTP interface, if no cluster is running yet."),
    dashboard_port: int = typer.Option(8265, help="Port of Ray's dashboard, if no cluster is running yet."),
) -> None:
    """Start a local cluster, run the digits pipeline, deploy it, and send it ten held-out digits."""
    from rich.console import Console

    from tidepool.cli.cluster import ensure_up
    from tidepool.cli.jobs import run_step
    from tidepool.cli.serving import deploy
    from tidepool.cluster.ports import Ports
    from tidepool.settings import Settings
    from tidepool.spec import load_spec

    began = time.monotonic()
    console, settings = Console(highlight=False), Settings()
    console.rule("[bold]1  a local cluster", align="left")
    ensure_up(settings, Ports(http_port, dashboard_port))
    console.rule("[bold]2  preprocess, train, evaluate, export, register", align="left")
    run_step("run", SPEC, [])
    console.rule("[bold]3  deploy", align="left")
    deploy(load_spec(SPEC).name, json=False)
    console.rule("[bold]4  ten held-out digits over HTTP", align="left")
    images, labels = _held_out()
    answers, latencies = _ask(settings, images)
    for line in drawing(images, answers, labels, per_row=min(5, (console.width + 2) // 18)):
        console.print(line, soft_wrap=True)
    console.rule("[bold]5  what you have now", align="left")
    for line in _summary(settings, latencies, time.monotonic() - began):
        console.print(line, soft_wrap=True)


def drawing(images: npt.NDArray[np.float32], answers: list[int], labels: list[int], per_row: int = 5) -> list[str]:
    """Images [n, 64] of 0 to 16 as shaded text, `per_row` beside one another, each above its answer."""
    lines = []
    for first in range(0, len(images), per_row):
        row = images[first : first + per_row].reshape(-1, 8, 8)
        lines += ["  ".join(map(_shaded, row[:, y])) for y in range(8)]
        pairs = zip(answers[first : first + per_row], labels[first : first + per_row], strict=True)
        lines.append("  ".join(f"{_verdict(answer, label):<16}" for answer, label in pairs))
        lines.append("")
    return lines


def _shaded(pixels: npt.NDArray[np.float32]) -> str:
    return "".join(SHADES[min(4, int(pixel) // 4)] * 2 for pixel in pixels)


def _verdict(answer: int, label: int) -> str:
    return f"answer {answer}" if answer == label else f"answer {answer}, is {label}"


def _held_out() -> tuple[npt.NDArray[np.float32], list[int]]:
    from tidepool.pipeline import Pipeline
    from tidepool.spec import load_spec

    rows = Pipeline(load_spec(SPEC)).held_out(SHOWN)
    return rows["image"], rows["label"].tolist()


def _ask(settings: Settings, images: npt.NDArray[np.float32]) -> tuple[list[int], list[float]]:
    """The answers to all images, one request each, and the seconds that `TIMED` requests took, in order."""
    from tidepool.cli.client import Client
    from tidepool.serve.codecs import encode_request

    with Client(settings) as client:
        bodies = [encode_request({"image": image.reshape(1, -1)}, {"image": "FP32"}) for image in images]
        answers = [int(client.infer("digits", body)["outputs"][0]["data"][0]) for body in bodies]
        latencies = []
        for number in range(TIMED):
            began = time.perf_counter()
            client.infer("digits", bodies[number % len(bodies)])
            latencies.append(time.perf_counter() - began)
    request = settings.root / "digits-request.json"
    request.write_bytes(bodies[0])
    return answers, sorted(latencies)


def _summary(settings: Settings, latencies: list[float], seconds: float) -> list[str]:
    from tidepool.cli.client import Client
    from tidepool.cli.output import command
    from tidepool.cluster.environment import default_home
    from tidepool.cluster.local import running
    from tidepool.registry.client import Registry
    from tidepool.telemetry.sizes import shown

    cluster = running(settings)
    champion: ModelVersion = Registry(settings.registry, settings.storage("artifacts")).version("digits", "champion")
    facts: dict[str, Any] = {
        "version": f"{champion.version}, champion",
        "accuracy": f"{champion.metrics['accuracy']:.4f} on held-out digits",
        "size": f"{shown(champion.bytes)}, weights and golden rows included",
        "latency": f"{latencies[len(latencies) // 2] * 1e3:.1f} ms median, "
        f"{latencies[int(len(latencies) * 0.99)] * 1e3:.1f} ms p99, over HTTP, one connection",
        "took": f"{seconds:.0f} s",
        "service": f"http://localhost:{cluster.http_port}/docs",
        "dashboard": cluster.dashboard,
        "state": f"{settings.root} (registry.db, artifacts/, runs/, data/, logs/)",
        "artifact": champion.uri,
    }
    with Client(settings) as client:
        curl = client.curl("digits", settings.root / "digits-request.json")
    elsewhere = settings.root != default_home()
    return [
        *(f"  [bold]{name:<10}[/] {value}" for name, value in facts.items()),
        "",
        f"The service goes on. Ask it:\n  {curl}",
        "",
        *([f"In another shell:\n  export TIDEPOOL_HOME={shlex.quote(str(settings.root))}", ""] if elsewhere else []),
        "Try next:",
        f"  {command()} models                       # versions, aliases, metrics",
        f"  {command()} run {SPEC} --set params.hidden=256",
        f"  {command()} down                         # end everything",
    ]
