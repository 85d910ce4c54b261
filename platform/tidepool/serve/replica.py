"""What runs in the replicas: one model with its versions, or the gateway."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from tidepool.serve import gateway, grpc, shortcut, versions
from tidepool.serve.admission import Admission
from tidepool.serve.dataplane import Dataplane
from tidepool.serve.host import Host
from tidepool.serve.readiness import is_ready
from tidepool.serve.reception import Reception
from tidepool.serve.rest import ModelApp
from tidepool.serve.versions import VersionTable
from tidepool.serve.vitals import Vitals
from tidepool.spec import ServeSpec


class Model:
    """A replica of one model: loads the versions of its table, and answers."""

    async def __init__(self, name: str, serve_spec: dict[str, Any]) -> None:  # type: ignore[misc]
        spec = ServeSpec(**serve_spec)
        self._dataplane = Dataplane(name, int(spec.cache_mb * 1e6))
        self._host = Host(self._dataplane, spec)
        self._vitals = Vitals(self._host.slo_s)
        self._admission = Admission(spec.auth)
        topic = f"model:{name}"
        revision, value = await versions.keeper().wait.remote(topic)
        await self._apply_versions(value)
        self._following = asyncio.create_task(versions.follow(topic, self._apply_versions, revision))
        self._reporting = asyncio.create_task(versions.report(name, self._host.traffic.news))
        await self._admission.open()
        grpc.answer_with(self, grpc.Servicer(self._dataplane, self._admission.keyring, self._host.max_body_bytes))
        # What is here now stays: the collector, which stops everything, needn't look at it again and again.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> ModelApp:
        host = self._host
        app = ModelApp(self._dataplane, self._admission.keyring, host.max_body_bytes, host.max_in_air)
        shortcut.publish(f"{gateway.MODEL_PREFIX}{self._dataplane.model}", app)
        return app

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscale.PoolPolicy` goes by; Serve asks several times a second."""
        data = self._dataplane
        return {**self._vitals.sample(data.ran_s, data.backlog_s, data.asked, data.arrived), **data.pace}

    def check_health(self) -> None:
        """Serve calls this every few seconds and replaces a replica in which it raises."""
        self._dataplane.check()

    def __del__(self) -> None:
        """Serve calls this when the replica ends."""
        self._host.traffic.close()

    async def _apply_versions(self, value: dict[str, Any]) -> None:
        await self._host.apply(VersionTable.from_json(value))


class Gateway:
    """The replica at `/`: what is about no model, and what is about none that is served."""

    def __init__(self, grpc_address: str) -> None:
        grpc.answer_with(self, Reception(grpc_address, gateway.served_models, is_ready))
