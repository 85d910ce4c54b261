"""What the registry holds, as plain values: registered models and their versions.

The words are MLflow's: a registered model has integer versions; an alias (`champion`, `challenger`) names one of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tidepool.errors import ModelNotFound, RegistryError

CHAMPION = "champion"
"""The alias of the version that answers."""
CANARY = "canary"
"""The alias of the version that answers a part of the requests in the champion's stead."""
SHADOW = "shadow"
"""The alias of the version that is asked beside the champion, and never answers."""

_ALIAS = re.compile(r"(?!v?\d+$|latest$)[a-z0-9][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class ModelVersion:
    """One version of a registered model. Everything but its aliases and tags stays as it was registered."""

    name: str
    version: int
    aliases: tuple[str, ...]
    uri: str
    """Where the artifact is: a folder or bucket that never changes."""
    digest: str
    """Hex sha256 of the artifact (see `tidepool.storage.digest`)."""
    bytes: int
    """Size of the artifact's files."""
    metrics: Mapping[str, float]
    params: Mapping[str, str]
    """The spec, flattened: `{"train.epochs": "20", ...}`."""
    tags: Mapping[str, str]
    lineage: Mapping[str, str]
    """What it was made from: digests of data, checkpoint and spec."""
    created_at: float
    """Seconds since the epoch."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**dataclasses.asdict(self), "aliases": list(self.aliases)}


@dataclass(frozen=True)
class Move:
    """An alias began to name `version`, at `at` seconds since the epoch."""

    version: int
    at: float
    rollback: bool = False


@dataclass(frozen=True)
class Shift:
    """`version` got a share of the traffic as canary or shadow, at `at` seconds since the epoch."""

    version: int
    percent: float
    """Of the requests; 0 ended it."""
    at: float
    why: str = ""
    """Empty where somebody typed it; else what it was decided on."""


@dataclass(frozen=True)
class RegisteredModel:
    """A name, its versions (newest first) and its aliases."""

    name: str
    versions: tuple[ModelVersion, ...]
    aliases: Mapping[str, int]
    moves: Mapping[str, tuple[Move, ...]]
    """Of each alias, its latest promotions and rollbacks, oldest first."""
    tags: Mapping[str, str]
    created_at: float
    """Seconds since the epoch."""
    shifts: Mapping[str, tuple[Shift, ...]] = dataclasses.field(default_factory=dict)
    """Of `canary` and `shadow`, the latest shifts, oldest first."""

    def share(self, alias: str) -> Shift | None:
        """The share of the traffic that the version called `canary` or `shadow` has, if there is one.

        An alias that was set past tidepool, e.g. in MLflow's UI, has no share.
        """
        latest = self.shifts.get(alias, ())[-1:]
        return latest[0] if latest and latest[0].percent and latest[0].version == self.aliases.get(alias) else None

    @property
    def champion(self) -> ModelVersion | None:
        """The version that answers, if one was promoted."""
        return next((v for v in self.versions if v.version == self.aliases.get(CHAMPION)), None)

    def version(self, wanted: int | str = CHAMPION) -> ModelVersion:
        """The version of that number or alias; a number may come as text.

        Raises:
            ModelNotFound: there is none; the message lists those that exist.
        """
        number = int(wanted) if str(wanted).isdecimal() else self.aliases.get(str(wanted))
        for version in self.versions:
            if version.version == number:
                return version
        if str(wanted).isdecimal():
            numbers = sorted(version.version for version in self.versions)
            remedy = f"`tidepool models {self.name}` shows what they are"
            raise ModelNotFound(
                f"{self.name} has no version {wanted}", seen=wanted, allowed=_listed(numbers), remedy=remedy
            )
        raise ModelNotFound(
            f"{self.name} has no alias {wanted}",
            seen=wanted,
            allowed=_listed(f"{alias} (version {number})" for alias, number in sorted(self.aliases.items())),
            remedy=f"set it: tidepool promote {self.name} {self.versions[0].version} --alias {wanted}",
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""
        return {**dataclasses.asdict(self), "versions": [version.to_json() for version in self.versions]}


def check_alias(alias: str) -> str:
    """`alias` itself, if versions may be named so.

    Raises:
        RegistryError: it could be taken for a version number, or has other characters than a-z 0-9 - _.
    """
    if not _ALIAS.fullmatch(alias):
        raise RegistryError(
            "not a name for an alias",
            seen=alias,
            allowed="a-z 0-9 - _, and neither a number, v1, nor latest",
            remedy="e.g. champion or challenger",
        )
    return alias


def no_such_model(name: str, known: Iterable[str]) -> ModelNotFound:
    """The error for a model that isn't registered, with the names that come close to it."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    remedy = f"did you mean {close[0]}?" if close else "register one: tidepool run deployments/<name>/spec.yaml"
    return ModelNotFound(f"no registered model {name}", seen=name, allowed=_listed(names), remedy=remedy)


def _listed(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names) or "none exist"
