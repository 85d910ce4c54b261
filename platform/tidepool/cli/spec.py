"""`tidepool schema`: the JSON schema of spec.yaml."""

from __future__ import annotations

import json

import typer


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command()(schema)


def schema() -> None:
    """Print the JSON schema of spec.yaml, for editors."""
    from tidepool.spec import Spec

    print(json.dumps(Spec.model_json_schema(), indent=2))
