"""The registry's tables, which are MLflow's: read, and an alias moved in one transaction.

MLflow's client has no transaction over an alias and its history, and importing it takes a second or two; reading
and moving need neither. Rows are only created by MLflow itself (see `tidepool.registry.recorder`).
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tidepool.errors import RegistryError
from tidepool.registry import history
from tidepool.registry.entities import ModelVersion, Move, RegisteredModel, Shift, no_such_model

PREFIX = "tidepool."
"""Begins the keys of the tags that tidepool writes; the next ones are those of a version, the last ones a model's."""
DIGEST, SIZE, METRICS, PARAMS, ORIGIN = (f"{PREFIX}{key}" for key in ("digest", "bytes", "metrics", "params", "from."))
HISTORY, SHIFTS = f"{PREFIX}history.", f"{PREFIX}shifts."

MODELS = sa.table("registered_models", sa.column("name"), sa.column("creation_time"))
VERSIONS = sa.table(
    "model_versions",
    *map(sa.column, ("name", "version", "source", "creation_time", "current_stage")),
)
ALIASES = sa.table("registered_model_aliases", *map(sa.column, ("name", "alias", "version")))
MODEL_TAGS = sa.table("registered_model_tags", *map(sa.column, ("name", "key", "value")))
VERSION_TAGS = sa.table("model_version_tags", *map(sa.column, ("name", "version", "key", "value")))


class Database:
    """The tables at a SQLAlchemy URL. Nothing is connected to before the first call."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, name: str | None = None) -> list[RegisteredModel]:
        """The registered models (or the one called `name`), sorted by name. A database not yet made holds none."""
        with explained(self._url):
            if _is_missing_file(self._url):
                return []
            with open_engine(self._url).connect() as connection:
                return _read(connection, name) if sa.inspect(connection).has_table(VERSION_TAGS.name) else []

    @contextlib.contextmanager
    def moving(self, name: str) -> Iterator[AliasWriter]:
        """One transaction over the aliases of a model; others who move them wait until the block ends.

        Raises:
            ModelNotFound: no such model.
            RegistryError: the database can't be reached or refuses; nothing has moved then.
        """
        with explained(self._url):
            if not self.read(name):
                raise no_such_model(name, [model.name for model in self.read()])
            with open_engine(self._url).begin() as connection:
                # A write comes first: it takes the row's lock in Postgres, the whole database's in SQLite.
                same = {"creation_time": MODELS.c.creation_time}
                connection.execute(sa.update(MODELS).where(MODELS.c.name == name).values(same))
                yield AliasWriter(connection, _read(connection, name)[0])


class AliasWriter:
    """The aliases of one model, inside a transaction."""

    def __init__(self, connection: sa.Connection, model: RegisteredModel) -> None:
        self._connection, self.model = connection, model

    def write(self, alias: str, moves: Sequence[Move]) -> None:
        """Store the alias's log, and make the alias name the version of the last move."""
        self._replace(ALIASES, {"alias": alias}, {"version": moves[-1].version})
        self._replace(MODEL_TAGS, {"key": f"{HISTORY}{alias}"}, {"value": history.dumps(moves)})

    def shift(self, alias: str, shift: Shift) -> None:
        """Add to the log of `canary` or `shadow`; the alias names the version, or nothing if its share is 0."""
        shifts = [*self.model.shifts.get(alias, ()), shift]
        self._replace(ALIASES, {"alias": alias}, {"version": shift.version} if shift.percent else None)
        self._replace(MODEL_TAGS, {"key": f"{SHIFTS}{alias}"}, {"value": history.dumps_shifts(shifts)})

    def _replace(self, table: sa.TableClause, key: Mapping[str, str], value: Mapping[str, Any] | None) -> None:
        """Put one row of the model in the place of another; without a value only take that out."""
        key = {"name": self.model.name, **key}
        self._connection.execute(sa.delete(table).where(*(table.c[name] == is_ for name, is_ in key.items())))
        if value is not None:
            self._connection.execute(sa.insert(table).values(**key, **value))


@contextlib.contextmanager
def explained(url: str) -> Iterator[None]:
    """Turn SQLAlchemy's errors inside the block into a `RegistryError` that shows no password."""
    try:
        yield
    except ImportError as error:
        raise RegistryError(
            "a database driver is missing", seen=error, remedy="pip install 'tidepool[postgres]'"
        ) from error
    except sa.exc.SQLAlchemyError as error:
        cause = getattr(error, "orig", None) or error
        raise RegistryError(
            f"the registry at {shown(url)} can't be used",
            seen=str(cause).strip().partition("\n")[0],
            remedy="check TIDEPOOL_REGISTRY_URL, and that the database is up",
        ) from error


def shown(url: str) -> str:
    """The URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "the URL given"


def open_engine(url: str) -> sa.Engine:
    """An engine that keeps no connection open and waits a while for a lock (SQLite) or an answer (Postgres)."""
    patience = {"sqlite": {"timeout": 30}, "postgresql": {"connect_timeout": 10}}
    return sa.create_engine(
        url, poolclass=sa.NullPool, connect_args=patience.get(sa.make_url(url).get_backend_name(), {})
    )


def _is_missing_file(url: str) -> bool:
    parsed = sa.make_url(url)
    return parsed.get_backend_name() == "sqlite" and not Path(parsed.database or "").is_file()


def _read(connection: sa.Connection, name: str | None = None) -> list[RegisteredModel]:
    """Aliases are read first: versions are only ever added, so that every alias finds its version."""

    def rows(table: sa.TableClause) -> Sequence[sa.RowMapping]:
        query = sa.select(table) if name is None else sa.select(table).where(table.c.name == name)
        return connection.execute(query).mappings().all()

    aliases: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows(ALIASES):
        aliases[row["name"]][row["alias"]] = row["version"]
    versions, version_tags = rows(VERSIONS), _tags(rows(VERSION_TAGS), "name", "version")
    model_tags = _tags(rows(MODEL_TAGS), "name")
    models = []
    for model in sorted(rows(MODELS), key=lambda row: str(row["name"])):
        own = [row for row in versions if row["name"] == model["name"] and row["current_stage"] != "Deleted_Internal"]
        found = [_version(row, version_tags[row["name"], row["version"]], aliases[row["name"]]) for row in own]
        registered = sorted(filter(None, found), key=lambda version: -version.version)
        if registered:
            tags = model_tags[(model["name"],)]
            models.append(
                RegisteredModel(
                    name=model["name"],
                    versions=tuple(registered),
                    aliases=aliases[model["name"]],
                    moves={k: history.loads(v) for k, v in _below(HISTORY, tags).items()},
                    shifts={k: history.loads_shifts(v) for k, v in _below(SHIFTS, tags).items()},
                    tags=_foreign(tags),
                    created_at=model["creation_time"] / 1000,
                )
            )
    return models


def _tags(rows: Sequence[sa.RowMapping], *of: str) -> dict[tuple[Any, ...], dict[str, str]]:
    tags: dict[tuple[Any, ...], dict[str, str]] = defaultdict(dict)
    for row in rows:
        tags[tuple(row[column] for column in of)][row["key"]] = row["value"]
    return tags


def _version(row: sa.RowMapping, tags: Mapping[str, str], aliases: Mapping[str, int]) -> ModelVersion | None:
    """The version in a row, or None if it was put there by another program than tidepool."""
    if DIGEST not in tags:
        return None
    return ModelVersion(
        name=row["name"],
        version=row["version"],
        aliases=tuple(sorted(alias for alias, version in aliases.items() if version == row["version"])),
        uri=row["source"],
        digest=tags[DIGEST],
        bytes=int(tags[SIZE]),
        metrics=json.loads(tags[METRICS]),
        params=json.loads(tags[PARAMS]),
        tags=_foreign(tags),
        lineage=_below(ORIGIN, tags),
        created_at=row["creation_time"] / 1000,
    )


def _foreign(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if not key.startswith(PREFIX)}


def _below(prefix: str, tags: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix(prefix): value for key, value in tags.items() if key.startswith(prefix)}
