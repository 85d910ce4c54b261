"""`tidepool run`, and its steps one by one: each submits a Ray job, follows its log, and ends with its exit code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from tidepool.cli.output import JSON, as_json

SPEC = typer.Argument(Path("deployments/digits/spec.yaml"), help="The model's spec.yaml.")
SET = typer.Option([], "--set", help="Override a field of the spec, e.g. --set train.epochs=30.")

STEPS = {
    "run": "Preprocess, train, evaluate, export and register, as one Ray job.",
    "preprocess": "Read, check, split and preprocess the data.",
    "train": "Train, from the last checkpoint if an earlier run of the same spec was interrupted.",
    "evaluate": "Evaluate the newest complete run on the held-out rows, against the gate.",
    "export": "Prune, quantise and write ONNX; register the result if it answers as the original does.",
}


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for step, summary in STEPS.items():
        app.command(step, help=summary)(_verb(step))


def _verb(step: str) -> Callable[[Path, list[str], bool], None]:
    def verb(spec: Path = SPEC, overrides: list[str] = SET, json: bool = JSON) -> None:
        result = run_step(step, spec, overrides, json)
        if json:
            as_json(result)

    return verb


def run_step(step: str, spec: Path, overrides: list[str], json: bool = False) -> Any:
    """Submit `jobs/<step>.py` for a spec and follow it to its end; returns its result, JSON-ready.

    With `json` all that is shown goes to stderr.

    Raises:
        SpecError: the spec is wrong; nothing is submitted.
        NoCluster: no cluster is running.
        ClusterError: it went away meanwhile.
        JobError: the job failed.
    """
    from tidepool.cli.follow import follow, submit
    from tidepool.settings import Settings
    from tidepool.spec import load_spec

    load_spec(spec, overrides)
    settings = Settings()
    project = project_of(spec)
    arguments = [f"jobs/{step}.py", str(spec.resolve().relative_to(project))]
    for override in overrides:
        arguments += ["--set", override]
    return follow(submit(settings, project, arguments, json), json)


def project_of(spec: Path) -> Path:
    """The folder above `spec` that holds `jobs/`: what travels with the job.

    Raises:
        SpecError: there is none.
    """
    from tidepool.errors import SpecError

    for folder in spec.resolve().parents:
        if (folder / "jobs").is_dir():
            return folder
    raise SpecError(
        "no folder above the spec holds jobs/", seen=spec, remedy="keep the spec below a checkout of tidepool"
    )
