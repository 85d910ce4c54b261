"""`tidepool keys`: make, list and revoke API keys."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import typer

from tidepool.cli.announce import announce
from tidepool.cli.output import JSON, as_json, table, when

if TYPE_CHECKING:
    from tidepool.serve.auth import KeyFile
    from tidepool.serve.limits import Limit
    from tidepool.settings import Settings

group = typer.Typer(help="Make, list and revoke API keys.", no_args_is_help=True)

AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?)(?:/(\w+))?")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.add_typer(group, name="keys")


@group.command()
def create(
    name: str = typer.Argument(help="Who it is for."),
    model: list[str] = typer.Option(["*"], help="A model that it opens; give it again for more. Default all."),
    verb: list[str] = typer.Option([], help="What for: infer, explain or read; give it again for more. Default all."),
    rate: str | None = typer.Option(None, help="Requests it may send, e.g. 100/s or 60/min. Default any."),
    burst: int | None = typer.Option(None, help="Of these, so many at once. Default a second's, at least 1."),
    quota: str | None = typer.Option(None, help="Requests it may send a day (UTC), e.g. 10000/day. Default any."),
    days: float | None = typer.Option(None, help="Days until it expires. Default never."),
    json: bool = JSON,
) -> None:
    """Make a key and print it: the only time that it can be seen."""
    from tidepool.serve.auth import VERBS

    settings, verbs, limit = _here(), tuple(verb) or VERBS, _limit(rate, burst, quota)
    key = _key_file(settings).create(name, model, None if days is None else days * 86_400, verbs, limit)
    if json:
        as_json({"name": name, "key": key, "models": model, "verbs": verbs, "limit": limit and str(limit)})
    else:
        print(key)
    _warn_of_strangers(settings, model)
    if limit is not None:
        print("its limit is of all replicas of the cluster together", file=sys.stderr)
    announce(keys=True)


@group.command("list")
def list_keys(json: bool = JSON) -> None:
    """List the keys, without their secrets."""
    keys = _key_file(_here()).load()
    if json:
        fields = ("id", "name", "models", "verbs", "expires")
        as_json([{name: getattr(k, name) for name in fields} | {"limit": k.limit and str(k.limit)} for k in keys])
        return
    rows = [
        [k.id, k.name, " ".join(k.models), " ".join(k.verbs), k.limit or "none", when(k.expires) or "never"]
        for k in keys
    ]
    table(["id", "name", "models", "verbs", "limit", "expires"], rows)


@group.command()
def revoke(id: str = typer.Argument(help="The key's id, as `tidepool keys list` shows it."), json: bool = JSON) -> None:
    """Revoke a key; replicas refuse it at once."""
    key = _key_file(_here()).revoke(id)
    if json:
        as_json({"id": key.id, "name": key.name})
    else:
        print(f"revoked {key.id} ({key.name})")
    announce(keys=True)


def _limit(rate: str | None, burst: int | None, quota: str | None) -> Limit | None:
    """The limit that was typed, if one was.

    Raises:
        SpecError: it makes no sense.
    """
    from tidepool.errors import SpecError
    from tidepool.serve.limits import Limit

    if rate is None and quota is None:
        if burst is not None:
            raise SpecError("a burst needs a rate", seen=f"--burst {burst}", remedy="add --rate")
        return None
    per_second = None if rate is None else _per(rate, {"s": 1, "min": 60, "h": 3600})
    per_day = None if quota is None else int(_per(quota, {"day": 1}))
    return Limit(per_second, burst if burst is not None else max(1, int(per_second or 1)), per_day)


def _per(text: str, units: dict[str, int]) -> float:
    """`"60/min"` as a number of requests a second, or whatever unit counts as 1 and is meant where none is named."""
    from tidepool.errors import SpecError

    match = AMOUNT.fullmatch(text)
    unit = (match[2] or next(iter(units))) if match else ""
    if match is None or unit not in units:
        allowed = ", ".join(f"100/{unit}" for unit in units)
        raise SpecError("not a number of requests", seen=text, allowed=allowed)
    return float(match[1]) / units[unit]


def _warn_of_strangers(settings: Settings, models: list[str]) -> None:
    """Say which models the registry doesn't have: a key may well be there before its model, or its name be mistyped."""
    from tidepool.errors import TidepoolError
    from tidepool.registry.client import Registry
    from tidepool.serve.auth import ANY_MODEL

    if named := [name for name in models if name != ANY_MODEL]:
        try:
            known = [each.name for each in Registry(settings.registry, settings.storage("artifacts")).models()]
        except TidepoolError as error:
            print(f"warning: whether there are such models is not known: {error}", file=sys.stderr)
            return
        for name in set(named) - set(known):
            there = ", ".join(known) or "no models yet"
            print(f"warning: the registry has no model {name}; it has {there}", file=sys.stderr)


def _here() -> Settings:
    """This home, whose keys these are.

    Raises:
        ClusterError: the shell is set to another cluster, which wouldn't know of them.
    """
    from tidepool.cluster.local import stay_here
    from tidepool.settings import Settings

    settings = Settings()
    stay_here(
        settings,
        "keys are kept on the head node of a cluster",
        "there: ray exec cluster.yaml 'tidepool keys create NAME'; or unset it for the local cluster",
    )
    return settings


def _key_file(settings: Settings) -> KeyFile:
    from tidepool.serve.auth import KeyFile

    return KeyFile(settings.keys_file)
