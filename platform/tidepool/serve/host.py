"""Brings the versions of a model's table into its dataplane, and divides the traffic between them."""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections.abc import Callable, Mapping

from tidepool.artifact import open_artifact
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion, load_version
from tidepool.serve.traffic import TrafficControl
from tidepool.serve.versions import Entry, VersionTable
from tidepool.settings import Settings
from tidepool.spec import ServeSpec

log = logging.getLogger(__name__)


class Host:
    """Of one model, in one replica."""

    def __init__(self, dataplane: Dataplane, spec: ServeSpec, load: Callable[..., LoadedVersion] | None = None) -> None:
        """`load` is called as `load_version` is."""
        self._dataplane = dataplane
        self._load_version = load or functools.partial(load_version, accelerator=spec.accelerator)
        self.traffic = TrafficControl(dataplane.model, spec, Settings())
        self.slo_s = spec.slo_p99_ms / 1e3
        self.max_waiting = spec.max_queued_requests if spec.max_queued_requests >= 0 else sys.maxsize
        self.max_in_air = spec.max_ongoing_requests + self.max_waiting
        self.max_body_bytes = int(spec.max_body_mb * 1e6)

    async def apply(self, table: VersionTable) -> None:
        """Load what the table names and isn't loaded, flip, and let go of what it names no more.

        A champion that can't be loaded is an error: the versions that answered go on. Others are left out, and a canary
        that decides itself is ended so.
        """
        loaded, failures = dict(self._dataplane.versions), dict[str, str]()
        for entry in sorted(table.entries, key=lambda entry: entry.version != table.champion):
            known = loaded.get(entry.version)
            if known is None or known.digest != entry.digest:
                try:
                    loaded[entry.version] = await asyncio.to_thread(self._load, entry)
                except Exception as error:  # of which kind, depends on what ran out or broke
                    if entry.version == table.champion:
                        raise
                    loaded.pop(entry.version, None)
                    failures[entry.version] = str(error) or type(error).__name__
                    log.warning("version %s is left out: %s", entry.version, error)
            if entry.version == table.champion:
                self._flip(table, dict(loaded), {})
        named = {entry.version: loaded[entry.version] for entry in table.entries if entry.version in loaded}
        self._flip(table, named, failures)

    def _flip(self, table: VersionTable, loaded: Mapping[str, LoadedVersion], failures: Mapping[str, str]) -> None:
        traffic = self.traffic.plan(table.champion, table.shares, loaded, failures)
        self._dataplane.flip(Lineup(table.champion, loaded, traffic))

    def _load(self, entry: Entry) -> LoadedVersion:
        artifact = open_artifact(entry.uri, Settings().root / "cache", entry.digest)
        self.traffic.mask(artifact.signature)  # one whose values can't be kept secret isn't served
        return self._load_version(entry.version, artifact, self.slo_s, self.max_waiting)
