"""`tidepool deploy`, `undeploy` and `predict`: models in service, and a request to one."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from tidepool.cli.output import JSON, as_json, waiting

NAME = typer.Argument(help="The registered model.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (deploy, undeploy, predict):
        app.command()(verb)


def deploy(name: str = NAME, json: bool = JSON) -> None:
    """Put a model's champion into service, with the settings that its own spec has; others are left alone."""
    from tidepool.cli.models import registry
    from tidepool.cluster.local import connect, running, stay_here
    from tidepool.serve.app import deploy as deploy_application
    from tidepool.settings import Settings

    settings = Settings()
    remedy = f"there: serve deploy deployments/{name}/serve.yaml; or unset it for the local cluster"
    stay_here(settings, "deploy is for the local cluster", remedy)
    port = running(settings).http_port
    with waiting(f"putting {name} into service"), connect(settings):
        deploy_application(settings, name, port)
    url = f"http://localhost:{port}/v2/models/{name}/infer"
    if json:
        as_json({"name": name, "url": url})
    else:
        print(f"{name} answers at {url}")
        print(f"as the spec says that version {registry().version(name).version} was made with")


def undeploy(name: str = NAME, json: bool = JSON) -> None:
    """Take a model out of service."""
    from tidepool.cluster.local import connect
    from tidepool.serve.app import undeploy as undeploy_application
    from tidepool.settings import Settings

    settings = Settings()
    with connect(settings):
        undeploy_application(settings, name)
    if json:
        as_json({"name": name})
    else:
        print(f"{name} is out of service; its versions stay in the registry")


def predict(
    name: str = NAME,
    request: Path = typer.Argument(Path("-"), help="A file with the request's JSON; - for standard input."),
    version: int | None = typer.Option(None, help="Ask this version; default the champion."),
) -> None:
    """Send an inference request with the CLI's own key, and print the answer and the curl line for it."""
    from tidepool.cli.client import Client
    from tidepool.errors import SpecError
    from tidepool.settings import Settings

    try:
        body = sys.stdin.buffer.read() if str(request) == "-" else request.read_bytes()
    except OSError as error:
        remedy = "give a file with a request's JSON, or - for standard input"
        raise SpecError("the request can't be read", seen=f"{request}: {error.strerror}", remedy=remedy) from None
    with Client(Settings()) as client:
        as_json(client.infer(name, body, version))
        print(client.curl(name, request, version), file=sys.stderr)
