"""`tidepool run`, and its steps one by one: each submits a Ray job, follows its log, and ends with its exit code."""

from __future__ import annotations

import sys
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
        if step in ("run", "export") and result and "champion" in result["aliases"]:
            print(_what_answers(result["name"], result["version"]), file=sys.stderr if json else sys.stdout)

    return verb


def _what_answers(name: str, version: int) -> str:
    """Whether the service answers with the champion that a job has made, as a sentence."""
    from tidepool.cli.announce import answering
    from tidepool.cluster.local import elsewhere, running
    from tidepool.errors import TidepoolError
    from tidepool.settings import Settings

    settings = Settings()
    if elsewhere(settings):
        return f"if that cluster has {name} in service, it answers with version {version} within five seconds"
    try:
        return answering(name, version, running(settings).http_port)
    except TidepoolError as error:
        return f"whether a service answers with version {version} isn't known: {error}"


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
