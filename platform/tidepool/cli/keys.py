"""`tidepool keys`: make, list and revoke API keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tidepool.cli.announce import announce
from tidepool.cli.output import JSON, as_json, table, when

if TYPE_CHECKING:
    from tidepool.serve.auth import KeyFile

group = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.add_typer(group, name="keys")


@group.command()
def create(
    name: str = typer.Argument(help="Who it is for."),
    model: list[str] = typer.Option(["*"], help="A model that it opens; give it again for more. Default all."),
    days: float | None = typer.Option(None, help="Days until it expires. Default never."),
    json: bool = JSON,
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    key = _key_file().create(name, model, None if days is None else days * 86_400)
    if json:
        as_json({"name": name, "key": key, "models": model})
    else:
        print(key)
    announce(keys=True)


@group.command("list")
def list_keys(json: bool = JSON) -> None:
    """List the keys, without their secrets."""
    keys = _key_file().load()
    if json:
        as_json([{"id": k.id, "name": k.name, "models": k.models, "expires": k.expires} for k in keys])
        return
    rows = [[k.id, k.name, ", ".join(k.models), when(k.created), when(k.expires) or "never"] for k in keys]
    table(["id", "name", "models", "created", "expires"], rows)


@group.command()
def revoke(id: str = typer.Argument(help="The key's id, as `tidepool keys list` shows it."), json: bool = JSON) -> None:
    """Revoke a key; replicas refuse it at once."""
    key = _key_file().revoke(id)
    if json:
        as_json({"id": key.id, "name": key.name})
    else:
        print(f"revoked {key.id} ({key.name})")
    announce(keys=True)


def _key_file() -> KeyFile:
    """This home's keys.

    Raises:
        ClusterError: the shell is set to another cluster, which wouldn't know of them.
    """
    from tidepool.cluster.local import stay_here
    from tidepool.serve.auth import KeyFile
    from tidepool.settings import Settings

    settings = Settings()
    stay_here(
        settings,
        "keys are kept on the head node of a cluster",
        "there: ray exec cluster.yaml 'tidepool keys create NAME'; or unset it for the local cluster",
    )
    return KeyFile(settings.keys_file)
