"""The registry: which versions of which models exist, and which of them the aliases name.

    artifact --register--> bytes in `blobs`, then a row in `database`   --promote, rollback--> an alias moves

A version is visible only after its bytes are stored and checked. Every version keeps its bytes for good.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

from tidepool.artifact import Artifact
from tidepool.errors import NothingToRollBack, RegistryError
from tidepool.registry import history
from tidepool.registry.blobs import Blobs
from tidepool.registry.database import PREFIX, AliasWriter, Database
from tidepool.registry.entities import (
    CANARY,
    CHAMPION,
    SHADOW,
    ModelVersion,
    Move,
    RegisteredModel,
    Shift,
    check_alias,
    no_such_model,
)
from tidepool.registry.recorder import Recorder
from tidepool.telemetry.progress import Progress, quiet

NO_TAGS: Mapping[str, str] = MappingProxyType({})


class Registry:
    """Registered models in the MLflow database at `url` (SQLAlchemy), their bytes below `artifacts` (path or URI).

    Making one touches nothing. Reading makes no database where there is none: it holds no models then.
    """

    def __init__(self, url: str, artifacts: str, clock: Callable[[], float] = time.time) -> None:
        self._database, self._blobs = Database(url), Blobs(artifacts)
        self._recorder = Recorder(url, artifacts, clock)
        self._clock = clock

    def register(
        self, artifact: Artifact, tags: Mapping[str, str] = NO_TAGS, progress: Progress = quiet
    ) -> ModelVersion:
        """Store the artifact and make it the next version of the model it is named for.

        The same artifact again is a new version of the same bytes.

        Raises:
            CorruptionError: the artifact is damaged; nothing was registered.
            StorageError: its bytes can't be stored; nothing was registered.
            RegistryError: a tag's key is reserved, or the database refuses; the bytes may stay, no version does.
        """
        reserved = sorted(key for key in tags if key.startswith((PREFIX, "mlflow.")))
        if reserved:
            raise RegistryError("reserved tag keys", seen=", ".join(reserved), remedy=f"don't begin them with {PREFIX}")
        uri = self._blobs.put(artifact, progress)
        number = self._recorder.record(artifact, uri, tags, progress)
        return self.version(artifact.name, number)

    def models(self) -> list[RegisteredModel]:
        """Every registered model with its versions, sorted by name."""
        return self._database.read()

    def version(self, name: str, version: int | str = CHAMPION) -> ModelVersion:
        """The version of that number or alias.

        Raises:
            ModelNotFound: no such model, version or alias; the message lists those that exist.
        """
        return self.model(name).version(version)

    def model(self, name: str) -> RegisteredModel:
        """One registered model with its versions, as all of it stands at one moment.

        Raises:
            ModelNotFound: no such model; the message names the one that comes closest.
        """
        found = self._database.read(name)
        if not found:
            raise no_such_model(name, [model.name for model in self.models()])
        return found[0]

    def promote(self, name: str, version: int, alias: str = CHAMPION) -> ModelVersion:
        """Give the alias to the version. If it has it already, nothing changes. A champion is canary or shadow no more.

        Raises:
            ModelNotFound: no such model or version.
            CorruptionError: the version's bytes are damaged; nothing moved.
            RegistryError: not a name for an alias, or the database refuses; nothing moved.
        """
        check_alias(alias)
        self._blobs.check(self.version(name, version))
        with self._database.moving(name) as aliases:
            chosen = aliases.model.version(version)
            self._give(aliases, alias, chosen.version, "promoted")
        return self.version(name, chosen.version)

    def rollback(self, name: str, alias: str = CHAMPION) -> ModelVersion:
        """Give the alias back to the version that had it before; twice goes back two.

        Raises:
            NothingToRollBack: it named no other version before.
            ModelNotFound: no such model or alias.
            CorruptionError: the earlier version's bytes are damaged; nothing moved.
            RegistryError: the database refuses; nothing moved.
        """
        checked = None
        while True:  # twice, or once more for each move that others make meanwhile: bytes are read without the lock
            with self._database.moving(name) as aliases:
                current = aliases.model.version(check_alias(alias))
                moves = self._moves(aliases.model, alias)
                previous = history.previous(moves, {version.version for version in aliases.model.versions})
                if previous is None:
                    raise NothingToRollBack(
                        f"{name}@{alias} named no other version before",
                        seen=f"it names version {current.version}",
                        remedy=f"promote another: tidepool promote {name} <version>",
                    )
                if previous == checked:
                    aliases.write(alias, [*moves, Move(previous, self._clock(), rollback=True)])
                    self._end_shares(aliases, alias, previous, "rolled back to")
                    break
            self._blobs.check(aliases.model.version(previous))
            checked = previous
        return self.version(name, previous)

    def shift(self, name: str, version: int, alias: str, percent: float) -> ModelVersion:
        """Let the version answer `percent` of the requests as the model's canary, or be asked beside the champion in so
        many as its shadow; whoever was that before is no more. 0 ends it.

        Raises:
            ModelNotFound: no such model or version, or the model has no champion.
            CorruptionError: the version's bytes are damaged; nothing moved.
            RegistryError: no such share, or the version is the champion, or isn't the one to end; nothing moved.
        """
        if alias not in (CANARY, SHADOW) or not 0 <= percent <= 100:
            raise RegistryError(f"no such share for a {alias}", seen=f"{percent:g} percent", allowed="0 to 100")
        if percent:
            self._blobs.check(self.version(name, version))
        with self._database.moving(name) as aliases:
            chosen, champion = aliases.model.version(version), aliases.model.version(CHAMPION)
            named = aliases.model.aliases.get(alias)
            if percent and chosen == champion:
                raise RegistryError(f"version {version} of {name} is the champion", remedy="choose another version")
            if not percent and named != chosen.version:
                seen = f"version {named}" if named else "none"
                remedy = f"`tidepool traffic {name}` shows who has which share"
                raise RegistryError(f"version {version} of {name} is no {alias}", seen=seen, remedy=remedy)
            aliases.shift(alias, Shift(chosen.version, percent, self._clock()))
        return self.version(name, chosen.version)

    def conclude(self, name: str, canary: Shift, promote: bool, why: str) -> bool:
        """End a canary, and make it the champion if `promote`; False if it has another share by now, or none.

        Raises:
            ModelNotFound: no such model.
            CorruptionError: the bytes of the version to promote are damaged; nothing moved.
        """
        if promote:
            self._blobs.check(self.version(name, canary.version))
        with self._database.moving(name) as aliases:
            if aliases.model.share(CANARY) != canary:
                return False
            if promote:
                self._give(aliases, CHAMPION, canary.version, why)
            else:
                aliases.shift(CANARY, Shift(canary.version, 0.0, self._clock(), why))
        return True

    def history(self, name: str, alias: str = CHAMPION) -> list[int]:
        """The versions that rollbacks lead through, oldest first; the last is the one that the alias names.

        Promotions and rollbacks themselves, with their times, are `RegisteredModel.moves`.

        Raises:
            ModelNotFound: no such model.
        """
        model = self.model(name)
        return history.standing(self._moves(model, alias)) if alias in model.aliases else []

    def _moves(self, model: RegisteredModel, alias: str) -> list[Move]:
        return history.caught_up(model.moves.get(alias, ()), model.aliases.get(alias), self._clock())

    def _give(self, aliases: AliasWriter, alias: str, version: int, why: str) -> None:
        moves = self._moves(aliases.model, alias)
        if version != aliases.model.aliases.get(alias):
            moves.append(Move(version, self._clock()))
        aliases.write(alias, moves)
        self._end_shares(aliases, alias, version, why)

    def _end_shares(self, aliases: AliasWriter, alias: str, version: int, why: str) -> None:
        """A new champion's own canary or shadow is over: a rollback must not bring it to life again."""
        for share in (CANARY, SHADOW) if alias == CHAMPION else ():
            if aliases.model.aliases.get(share) == version:
                aliases.shift(share, Shift(version, 0.0, self._clock(), why))
