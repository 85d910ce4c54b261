"""A model that shares its replica with others: in memory from the first request on, until others need the room.

All versions of its table are loaded and put away together, so that a canary, a promotion or a rollback is as quick as
for a model with replicas of its own. What they have done is remembered when they are put away.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import Any

from tidepool.artifact import Artifact
from tidepool.errors import NotReady, UnknownModel
from tidepool.recipe import Signature
from tidepool.serve import protocol
from tidepool.serve.dataplane import Dataplane, LoadedVersion, load_version
from tidepool.serve.host import Host
from tidepool.serve.protocol import InferRequest, InferResponse
from tidepool.serve.queueing import try_later
from tidepool.serve.scale import Scale
from tidepool.serve.shelf import Shelf, too_large
from tidepool.serve.statistics import Counts
from tidepool.serve.versions import VersionTable
from tidepool.spec import ServeSpec

WEIGHED_AGAIN_S = 60.0
"""A model that was found too large is weighed again after so long: what else happens in the process counts with it."""


class Tenant(Dataplane):
    """Answers requests for one model, which is a `Loadable` on a shelf."""

    def __init__(
        self,
        model: str,
        spec: ServeSpec,
        shelf: Shelf,
        scale: Scale,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(model, int(spec.cache_mb * 1e6))
        self.host = Host(self, spec, self._load_version)
        self._shelf, self._scale, self._clock = shelf, scale, clock
        self._table: VersionTable | None = None
        self._bytes: dict[str, int] = {}
        """What each digest of the table took when it was loaded last."""
        self._refused: dict[str, tuple[int, float]] = {}
        """What each that was too large took, and until when that is believed."""
        self._counts: dict[str, Counts] = {}
        """Of each version of the table that was ever loaded."""
        self._signatures: dict[str, Signature] = {}
        """Of the same."""

    async def apply(self, value: dict[str, Any]) -> None:
        """Answer by this table of versions: at once, if the model is in memory."""
        self._table = table = VersionTable.from_json(value)
        versions, digests = {e.version for e in table.entries}, {e.digest for e in table.entries}
        self._bytes = {digest: size for digest, size in self._bytes.items() if digest in digests}
        self._refused = {digest: size for digest, size in self._refused.items() if digest in digests}
        self._counts = {version: counts for version, counts in self._counts.items() if version in versions}
        self._signatures = {version: one for version, one in self._signatures.items() if version in versions}
        await self._shelf.renew(self)

    def held(self) -> AbstractAsyncContextManager[None]:
        """The versions are in memory for the length of a block, loaded if need be.

        Raises:
            NotReady: nobody knows the versions yet.
            DoesNotFit: the model is larger than all the memory that models share.
            TryLater: all that memory is in use.
        """
        if self._table is None:
            raise NotReady(f"the versions of {self.model} aren't known yet", remedy="try again in a moment")
        return self._shelf.held(self)

    async def infer(self, request: InferRequest, version: str | None = None, key: str = "") -> InferResponse:
        """As any dataplane; the first request after a pause waits until the model is loaded, no longer than it has.

        Raises:
            TryLater: it isn't loaded when the answer is due.
        """
        _, timeout_s = protocol.urgency(request.parameters)
        async with contextlib.AsyncExitStack() as hold:
            if timeout_s and not self._shelf.has(self):
                protocol.hurry(request, timeout_s - await self._enter_within(timeout_s, hold))
            else:
                await hold.enter_async_context(self.held())
            return await super().infer(request, version, key)

    async def _enter_within(self, timeout_s: float, hold: contextlib.AsyncExitStack) -> float:
        """Hold the model once it is loaded; returns how long that took, in seconds."""
        began = self._clock()
        await asyncio.sleep(0)  # from here on there is a task, which a time-out needs (see `eager`)
        try:
            async with asyncio.timeout(timeout_s):
                await hold.enter_async_context(self.held())
        except TimeoutError:
            raise try_later("the deadline passed while the model was loaded", 1.0, seen=f"{timeout_s:g} s") from None
        return self._clock() - began

    async def load(self) -> int:
        """Load what the table names; returns the bytes that it takes."""
        assert self._table is not None
        await self.host.apply(self._table)
        return self._size

    def put_away(self) -> None:
        """Let go of all versions."""
        self._scale.discard(self._lineup)
        self._lineup = None

    @property
    def expected(self) -> int:
        """What the champion took when it was loaded last, in bytes; there may be no room for others."""
        table = self._table
        champions = () if table is None else (e.digest for e in table.entries if e.version == table.champion)
        return max((self._bytes.get(digest, 0) for digest in champions), default=0)

    @property
    def is_busy(self) -> bool:
        """Whether a request may have to wait."""
        return self._lineup is None or super().is_busy

    def ready(self, version: str | None = None) -> bool:
        """Whether requests for this version would be answered, if only after it was loaded."""
        table = self._table
        return table is not None and version in (None, *(entry.version for entry in table.entries))

    def signature(self, version: str | None) -> Signature:
        """As any dataplane; known as long as the table names a version that was ever loaded."""
        if self._table is not None and (known := self._signatures.get(version or self._table.champion)):
            return known
        return super().signature(version)

    def statistics(self, version: str | None = None) -> dict[str, Any]:
        """What the versions have done in this replica, in memory or not; and what the model takes of the memory."""
        if not self.ready(version):
            raise UnknownModel(f"version {version} of {self.model} is not served", seen=version)
        away = {name: counts for name, counts in self._counts.items() if name not in self.versions}
        here = self._lineup is not None and version not in away
        document = super().statistics(version) if here else {"model_stats": []}
        told = [counts.to_json(self.model, name, 0) for name, counts in away.items() if version in (None, name)]
        shelf = {**self._shelf.statistics(self), "all_bytes": self._shelf.used, "budget_bytes": self._shelf.budget}
        return {**document, "model_stats": [*document["model_stats"], *told], "shelf": shelf}

    @property
    def _size(self) -> int:
        """Of all versions in memory, in bytes."""
        return sum(self._bytes[loaded.digest] for loaded in self.versions.values())

    def _load_version(self, version: str, artifact: Artifact, slo_s: float, max_waiting: int) -> LoadedVersion:
        """As `load_version`, on the scale: other versions than the champion may take what it leaves."""
        table = self._table
        others = 0 if table is None or version == table.champion else self._size
        least = artifact.onnx.stat().st_size  # so much it takes at any rate
        refused, until = self._refused.get(artifact.digest, (0, 0.0))
        self._check(others + max(least, refused if self._clock() < until else 0))
        load = functools.partial(load_version, version, artifact, slo_s, max_waiting)
        loaded, weighed = self._scale.weigh(load, least)
        if others + weighed > self._shelf.budget:
            self._refused[artifact.digest] = weighed, self._clock() + WEIGHED_AGAIN_S
        self._check(others + weighed)
        self._bytes[artifact.digest] = weighed
        self._signatures[version] = loaded.signature
        return replace(loaded, counts=self._counts.setdefault(version, loaded.counts))

    def _check(self, size: int) -> None:
        if size > self._shelf.budget:
            raise too_large(size, self._shelf.budget)
