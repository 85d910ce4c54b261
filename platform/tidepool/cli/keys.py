"""`tidepool keys`: make, list and revoke API keys."""

from __future__ import annotations

import typer

from tidepool.cli.output import as_json, table, when

group = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.add_typer(group, name="keys")


@group.command()
def create(
    name: str = typer.Argument(help="Who it is for."),
    model: list[str] = typer.Option(["*"], help="A model that it opens; give it again for more. Default all."),
    days: float | None = typer.Option(None, help="Days until it expires. Default never."),
    json: bool = typer.Option(False, "--json", help="Print JSON."),
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    from tidepool.serve.auth import KeyFile
    from tidepool.settings import Settings

    key = KeyFile(Settings().keys_file).create(name, model, None if days is None else days * 86_400)
    _announce()
    if json:
        as_json({"name": name, "key": key, "models": model})
    else:
        print(key)


@group.command("list")
def list_keys(json: bool = typer.Option(False, "--json", help="Print JSON.")) -> None:
    """List the keys, without their secrets."""
    from tidepool.serve.auth import KeyFile
    from tidepool.settings import Settings

    keys = KeyFile(Settings().keys_file).load()
    if json:
        as_json([{"id": k.id, "name": k.name, "models": k.models, "expires": k.expires} for k in keys])
        return
    rows = [[k.id, k.name, ", ".join(k.models), when(k.created), when(k.expires) or "never"] for k in keys]
    table(["id", "name", "models", "created", "expires"], rows)


@group.command()
def revoke(id: str = typer.Argument(help="The key's id, as `tidepool keys list` shows it.")) -> None:
    """Revoke a key; replicas refuse it at once."""
    from tidepool.serve.auth import KeyFile
    from tidepool.settings import Settings

    key = KeyFile(Settings().keys_file).revoke(id)
    _announce()
    print(f"revoked {key.id} ({key.name})")


def _announce() -> None:
    """Tell the replicas, if a cluster is running."""
    from tidepool.cluster.local import connect
    from tidepool.errors import NoCluster
    from tidepool.serve.app import announce
    from tidepool.settings import Settings

    try:
        with connect(Settings()):
            announce(keys=True)
    except NoCluster:
        pass  # the replicas of the next cluster read the file when they start
