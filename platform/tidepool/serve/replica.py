"""What runs in the replicas: one model with its versions, or the gateway."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any

from tidepool.artifact import open_artifact
from tidepool.serve import gateway, grpc, jwks, shortcut, tallies, tokens, versions
from tidepool.serve.auth import Key, Keyring
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion, load_version
from tidepool.serve.reception import Reception
from tidepool.serve.rest import ModelApp
from tidepool.serve.traffic import TrafficControl
from tidepool.serve.versions import Entry, VersionTable
from tidepool.serve.vitals import Vitals
from tidepool.settings import Settings
from tidepool.spec import ServeSpec

log = logging.getLogger(__name__)


class Model:
    """A replica of one model: loads the versions of its table, and answers."""

    async def __init__(self, name: str, serve_spec: dict[str, Any]) -> None:  # type: ignore[misc]
        spec = ServeSpec(**serve_spec)
        self._dataplane = Dataplane(name, int(spec.cache_mb * 1e6))
        self._traffic = TrafficControl(name, spec, Settings())
        self._tokens = tokens.of(Settings()) if spec.auth == "jwt" else None
        self._keyring = None if spec.auth == "none" else Keyring(tokens=self._tokens)
        self._max_body_bytes = int(spec.max_body_mb * 1e6)
        self._slo_s = spec.slo_p99_ms / 1e3
        self._max_waiting = spec.max_queued_requests if spec.max_queued_requests >= 0 else sys.maxsize
        self._max_in_air = spec.max_ongoing_requests + self._max_waiting
        self._vitals = Vitals(self._slo_s)
        self._tasks: list[asyncio.Task[None]] = []
        await self._follow(f"model:{name}", self._apply_versions)
        if self._keyring is not None:
            await self._follow(versions.KEYS, self._apply_keys)
            self._go_on_with(tallies.share(self._keyring.limits, tallies.teller()))
        if self._keyring is not None and self._tokens is not None:
            published = (self._tokens, str(Settings().jwt_jwks), self._keyring.forget)
            await jwks.refresh(*published)
            self._go_on_with(jwks.follow(*published))
        self._go_on_with(versions.report(name, self._traffic.news))
        grpc.answer_with(self, grpc.Servicer(self._dataplane, self._keyring, self._max_body_bytes))
        # What is here now stays: the collector, which stops everything, needn't look at it again and again.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> ModelApp:
        app = ModelApp(self._dataplane, self._keyring, self._max_body_bytes, self._max_in_air)
        shortcut.publish(f"{gateway.MODEL_PREFIX}{self._dataplane.model}", app)
        return app

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscale.PoolPolicy` goes by; Serve asks several times a second."""
        data = self._dataplane
        return {**self._vitals.sample(data.ran_s, data.backlog_s, data.asked, data.arrived), **data.pace}

    def check_health(self) -> None:
        """Serve calls this every few seconds and replaces a replica in which it raises."""
        _ = self._dataplane.lineup

    def __del__(self) -> None:
        """Serve calls this when the replica ends."""
        self._traffic.close()

    async def _follow(self, topic: str, apply: Callable[[Any], Awaitable[None]]) -> None:
        """Apply what the keeper has of a topic now, and whatever comes later."""
        revision, value = await versions.keeper().wait.remote(topic)
        await apply(value)
        self._go_on_with(versions.follow(topic, apply, revision))

    def _go_on_with(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def _apply_versions(self, value: dict[str, Any]) -> None:
        """Load what the table names and isn't loaded, flip, and let go of what it names no more.

        A champion that can't be loaded is an error: the versions that answered go on. Others are merely left out.
        """
        table = VersionTable.from_json(value)
        loaded = dict(self._dataplane.lineup.versions) if self._dataplane.ready() else {}
        for entry in sorted(table.entries, key=lambda entry: entry.version != table.champion):
            known = loaded.get(entry.version)
            if known is None or known.digest != entry.digest:
                try:
                    loaded[entry.version] = await asyncio.to_thread(self._load, entry)
                except Exception as error:  # of which kind, depends on what ran out or broke
                    if entry.version == table.champion:
                        raise
                    loaded.pop(entry.version, None)
                    log.warning("version %s is left out: %s", entry.version, error)
            if entry.version == table.champion:
                self._flip(table, dict(loaded))
        self._flip(table, {entry.version: loaded[entry.version] for entry in table.entries if entry.version in loaded})

    def _flip(self, table: VersionTable, loaded: Mapping[str, LoadedVersion]) -> None:
        traffic = self._traffic.plan(table.champion, table.shares, loaded)
        self._dataplane.flip(Lineup(table.champion, loaded, traffic))

    def _load(self, entry: Entry) -> LoadedVersion:
        artifact = open_artifact(entry.uri, Settings().root / "cache", entry.digest)
        self._traffic.mask(artifact.signature)  # one whose values can't be kept secret isn't served
        return load_version(entry.version, artifact, self._slo_s, self._max_waiting)

    async def _apply_keys(self, value: list[dict[str, Any]]) -> None:
        assert self._keyring is not None
        self._keyring.replace(Key.from_json(entry) for entry in value)


class Gateway:
    """The replica at `/`: what is about no model, and what is about none that is served."""

    def __init__(self, grpc_address: str) -> None:
        grpc.answer_with(self, Reception(grpc_address, gateway.served_models))
