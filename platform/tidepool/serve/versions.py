"""The version table: which version of each model answers, carried to every replica in milliseconds.

The truth is the registry. One detached actor, the `TableKeeper`, reads it when it is told to (`refresh`) and every few
seconds (for aliases that others moved); replicas hold a long poll on it, so that a flip costs one message to each.
It carries the API keys the same way. Replicas never import the registry: they get artifact URIs and digests.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from tidepool.errors import ModelNotFound, TidepoolError
from tidepool.serve.splits import Share
from tidepool.serve.standby import Standby
from tidepool.serve.watching import News, Watches, conclude
from tidepool.settings import Settings

log = logging.getLogger(__name__)

NAME, NAMESPACE = "tidepool-tables", "tidepool"
KEYS = "keys"
"""The topic of the API keys."""
SHARED = "shared"
"""The topic of the models that share replicas; every other topic is `model:<name>`."""
POLL_S = 5.0
"""Seconds between two looks at the registry for moves that nobody announced."""
REPORT_S = 1.0
"""Seconds between two reports of a replica on its canary and shadow."""
HOLD_S = 30.0
"""Seconds after which a long poll without news is answered all the same."""


@dataclass(frozen=True)
class Entry:
    """Where one version's artifact is."""

    version: str
    uri: str
    digest: str


@dataclass(frozen=True)
class VersionTable:
    """The versions of a model that replicas keep loaded: the champion, its predecessor, the challenger, and those that
    have a share of the traffic.
    """

    champion: str
    entries: tuple[Entry, ...]
    shares: dict[str, Share] = field(default_factory=dict)
    """Of `canary` and `shadow`, where there is one."""

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> VersionTable:
        """The inverse of `dataclasses.asdict`."""
        shares = {alias: Share(**share) for alias, share in document["shares"].items()}
        return cls(document["champion"], tuple(Entry(**entry) for entry in document["entries"]), shares)


def read_table(settings: Settings, model: str) -> VersionTable:
    """The table of one model, from the registry.

    Raises:
        ModelNotFound: no such model, or it has no champion.
    """
    from tidepool.registry.client import Registry
    from tidepool.registry.entities import CANARY, SHADOW

    registry = Registry(settings.registry, settings.storage("artifacts"))
    registered, before = registry.model(model), registry.history(model, "champion")[:-1][-1:]
    champion = registered.version()
    versions = {champion.version: champion}
    others: list[int | str] = [*before, "challenger", CANARY, SHADOW]
    for other in others:
        with contextlib.suppress(ModelNotFound):
            found = registered.version(other)
            versions[found.version] = found
    entries = tuple(Entry(str(v.version), v.uri, v.digest) for v in versions.values())
    shares = {alias: share for alias in (CANARY, SHADOW) if (share := registered.share(alias))}
    return VersionTable(
        str(champion.version),
        entries,
        {alias: Share(str(share.version), share.percent, share.at) for alias, share in shares.items()},
    )


def read_topic(settings: Settings, topic: str) -> Any:
    """The JSON-ready value of a topic."""
    from tidepool.serve.auth import KeyFile
    from tidepool.serve.roster import Roster

    if topic == SHARED:
        return Roster(settings.roster_file).load()
    if topic == KEYS:
        return [asdict(key) for key in KeyFile(settings.keys_file).load()]
    return asdict(read_table(settings, topic.removeprefix("model:")))


LONGEST_RETRY_S = 10.0
"""Between two tries to follow what can't be had."""


class TableKeeper:
    """The actor's class. A topic's revision goes up with each change of its value, and begins at the time of the first:
    one that is started anew, when Ray has replaced it, doesn't tell two values by the same number.
    """

    def __init__(
        self,
        read: Callable[[str], Any] | None = None,
        poll_s: float = POLL_S,
        clock: Callable[[], int] = time.time_ns,
        standby: int = 0,
    ) -> None:
        settings = self._settings = Settings()
        self._read = read or (lambda topic: read_topic(settings, topic))
        self._watches = Watches()
        self._poll_s, self._clock = poll_s, clock
        self._values: dict[str, tuple[int, Any]] = {}
        self._notes: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._reading = asyncio.Lock()
        self._watcher: asyncio.Task[None] | None = None
        self._standby = Standby(standby)
        self._starter: asyncio.Task[None] | None = None

    async def attend(self) -> None:
        """From now on look for changes that nobody tells, and keep processes ready for replicas."""
        self._watcher = self._watcher or asyncio.create_task(self._watch())
        self._starter = self._starter or asyncio.create_task(self._standby.keep())

    async def wait(self, topic: str, seen: int = 0) -> tuple[int, Any]:
        """The (revision, value) of a topic once its revision is another than `seen`, or after `HOLD_S` as it is.

        Raises:
            ModelNotFound: the topic's model isn't in the registry, or has no champion.
        """
        await self.attend()
        if topic not in self._values:
            await self.refresh(topic)
        async with self._changed:
            news = self._changed.wait_for(lambda: self._values[topic][0] != seen)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(news, HOLD_S)
            return self._values[topic]

    async def refresh(self, topic: str) -> int:
        """Read a topic anew and tell those who wait; returns its revision."""
        async with self._reading:
            value = await asyncio.to_thread(self._read, topic)
            revision, known = self._values.get(topic, (self._clock(), None))
            if topic in self._values and value == known:
                return revision
            async with self._changed:
                self._values[topic] = (revision + 1, value)
                self._changed.notify_all()
            return revision + 1

    def note(self, application: str, fingerprint: str) -> None:
        """Remember what an application was deployed as."""
        self._notes[application] = fingerprint

    def noted(self, application: str) -> str | None:
        """What an application was deployed as, if this actor has seen it."""
        return self._notes.get(application)

    async def report(self, model: str, news: list[News]) -> None:
        """Count what a replica has seen of canary and shadow; promote the canary, or end it, if that decides it."""
        for one in news:
            verdict = self._watches.see(model, one)
            if verdict is None:
                continue
            try:
                await asyncio.to_thread(conclude, self._settings, model, one.share, verdict)
            except Exception as error:  # whatever it is, it is tried again
                log.warning("canary %s of %s can't be concluded: %s", one.share.version, model, error)
                self._watches.reopen(model, one.alias)
            await self.refresh(f"model:{model}")

    def watched(self, model: str) -> dict[str, Any]:
        """What all replicas together have seen of a model's canary and shadow."""
        return self._watches.to_json(model)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self._poll_s)
            for topic in list(self._values):
                try:
                    await self.refresh(topic)
                except Exception as error:
                    # Whatever is wrong with one topic, the others are still looked at. A bug's place is wanted.
                    is_bug = not isinstance(error, TidepoolError)
                    log.warning("the table of %s stays as it was: %s", topic, error, exc_info=is_bug)


def keeper(standby: int = 0) -> Any:
    """The handle of the actor. If there is none it is started on the head node, with `standby` processes to keep."""
    import ray

    options = {
        "name": NAME,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 10_000,
        "resources": {"node:__internal_head__": 0.001},
    }
    return ray.remote(TableKeeper).options(**options).remote(standby=standby)


def watched(name: str) -> dict[str, Any]:
    """What all replicas together have seen of a model's canary and shadow; nothing if nobody serves it."""
    import ray

    try:
        actor = ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return {}
    return dict(ray.get(actor.watched.remote(name)))


async def follow(topic: str, apply: Callable[[Any], Awaitable[None]], revision: int = 0, retry_s: float = 1.0) -> None:
    """Hold a long poll on a topic and `apply` each new value, for ever; a failure is logged and tried again."""
    wait_s = retry_s
    while True:
        try:
            news, value = await keeper().wait.remote(topic, revision)
            if news != revision:
                await apply(value)
                revision = news
            wait_s = retry_s
        except Exception as error:
            # What tidepool itself says is enough; anything else is a bug, and its place is wanted.
            log.warning("following %s failed: %s", topic, error, exc_info=not isinstance(error, TidepoolError))
            revision = 0
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_RETRY_S)


async def report(model: str, news: Callable[[], list[News]], every_s: float = REPORT_S) -> None:
    """Tell the keeper what was seen of canary and shadow, for ever; what can't be told is lost, and logged."""
    while True:
        await asyncio.sleep(every_s)
        seen = news()
        try:
            if seen:
                await keeper().report.remote(model, seen)
        except Exception as error:
            log.warning("what was seen of %s can't be reported: %s", model, error)
