"""`tidepool models`, `promote` and `rollback`: what the registry holds, and which version answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from tidepool.cli.announce import announce
from tidepool.cli.output import JSON, as_json, table, when
from tidepool.telemetry import sizes

if TYPE_CHECKING:
    from tidepool.registry.client import Registry
    from tidepool.registry.entities import RegisteredModel

ALIAS = typer.Option("champion", help="The alias to move.")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (models, promote, rollback):
        app.command()(verb)


def models(
    name: str | None = typer.Argument(None, help="Show this model alone."),
    json: bool = JSON,
) -> None:
    """List registered models with their versions, aliases and metrics."""
    from tidepool.registry.entities import no_such_model

    registered = registry().models()
    shown = [model for model in registered if name in (None, model.name)]
    if name is not None and not shown:
        raise no_such_model(name, [model.name for model in registered])
    if json:
        as_json([model.to_json() for model in shown])
        return
    rows = [
        [
            model.name,
            version.version,
            ", ".join(_with_share(model, alias) for alias in version.aliases),
            " ".join(f"{metric} {value:.4g}" for metric, value in sorted(version.metrics.items())),
            sizes.shown(version.bytes),
            version.digest[:12],
            when(version.created_at),
        ]
        for model in shown
        for version in model.versions
    ]
    table(["model", "version", "aliases", "metrics", "size", "digest", "registered"], rows, title="models")


def promote(
    name: str = typer.Argument(help="The registered model."),
    version: int = typer.Argument(help="The version that the alias is to name."),
    alias: str = ALIAS,
    json: bool = JSON,
) -> None:
    """Set an alias, `champion` by default, to a version; replicas answer with it at once."""
    here = registry()
    was_it = here.model(name).aliases.get(alias) == version
    promoted = here.promote(name, version, alias)
    if json:
        as_json(promoted.to_json())
    else:
        print(f"{name}@{alias} is version {version}" + (" already; nothing has changed" if was_it else ""))
    announce(name)  # again, too: who asks again may have been told that no cluster was told


def rollback(name: str = typer.Argument(help="The registered model."), alias: str = ALIAS, json: bool = JSON) -> None:
    """Set an alias back to what it named before; twice goes back two."""
    version = registry().rollback(name, alias)
    if json:
        as_json(version.to_json())
    else:
        print(f"{name}@{alias} is version {version.version} again")
    announce(name)


def _with_share(model: RegisteredModel, alias: str) -> str:
    share = model.share(alias)
    return f"{alias} {share.percent:g} %" if share else alias


def registry() -> Registry:
    """The registry of this home, or of TIDEPOOL_REGISTRY_URL."""
    from tidepool.registry.client import Registry
    from tidepool.settings import Settings

    settings = Settings()
    return Registry(settings.registry, settings.storage("artifacts"))
