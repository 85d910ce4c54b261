"""The replica of the shared models: each is a tenant with its own path, keys and limits; a shelf holds those in memory.

Its application has the route prefix `/v2/models`: what no model's own application takes comes here.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tidepool.errors import ClusterError, TidepoolError
from tidepool.serve import gateway, grpc, shortcut, versions
from tidepool.serve.admission import Admission
from tidepool.serve.body import Receive
from tidepool.serve.gradients import Gradients
from tidepool.serve.grpc import CALLS, Servicer
from tidepool.serve.readiness import is_ready
from tidepool.serve.reception import Desk, refuse, subject
from tidepool.serve.rest import JSON, ModelApp, Scope, Send, respond
from tidepool.serve.scale import Scale
from tidepool.serve.shelf import Shelf
from tidepool.serve.tenant import Tenant
from tidepool.serve.triton import Index
from tidepool.spec import ServeSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Door:
    """How a tenant is reached, and what it was made from."""

    spec: ServeSpec
    tenant: Tenant
    app: ModelApp
    servicer: Servicer
    tasks: tuple[asyncio.Task[None], ...]
    """That follow its table of versions, and report what was seen of canary and shadow."""


class Shared:
    """A replica of all shared models."""

    async def __init__(self, budget: int) -> None:  # type: ignore[misc]
        """`budget`: bytes for the models in memory."""
        importlib.import_module("onnxruntime")  # its own memory is no model's
        self._shelf, self._scale, self._gradients = Shelf(budget), Scale(), Gradients()
        self._doors: dict[str, Door] = {}
        self._admissions: dict[str, Admission] = {}
        revision, value = await versions.keeper().wait.remote(versions.SHARED)
        try:
            await self._apply(value)
        except ClusterError:
            revision = 0  # so that those that are missing are tried again
        self._following = asyncio.create_task(versions.follow(versions.SHARED, self._apply, revision))
        grpc.answer_with(self, SharedServicer(self._servicer, gateway.served_models, is_ready))
        # What is here now stays: the collector, which stops everything, needn't look at it again and again.
        gc.collect()
        gc.freeze()

    def __serve_build_asgi_app__(self) -> SharedApp:
        return SharedApp(self._doors)

    def check_health(self) -> None:
        """Serve calls this every few seconds and replaces a replica in which it raises."""
        if self._following.done():
            self._following.result()

    def __del__(self) -> None:
        """Serve calls this when the replica ends."""
        for door in self._doors.values():
            door.tenant.host.traffic.close()

    def _servicer(self, name: str) -> Servicer | None:
        door = self._doors.get(name)
        return None if door is None else door.servicer

    async def _apply(self, roster: dict[str, dict[str, Any]]) -> None:
        """Let in the models of the roster, and no others.

        Raises:
            ClusterError: some can't be served, which disturbs no others.
        """
        specs = {name: ServeSpec(**section) for name, section in roster.items()}
        for name in [name for name, door in self._doors.items() if specs.get(name) != door.spec]:
            self._leave(name)
        missing = []
        for name in specs.keys() - self._doors.keys():
            try:
                await self._enter(name, specs[name])
            except Exception as error:
                log.warning("%s can't be served: %s", name, error, exc_info=not isinstance(error, TidepoolError))
                missing.append(name)
        if missing:
            raise ClusterError("some shared models can't be served", seen=", ".join(missing))

    async def _enter(self, name: str, spec: ServeSpec) -> None:
        keyring = (await self._admission(spec.auth)).keyring
        tenant = Tenant(name, spec, self._shelf, self._scale)
        topic = f"model:{name}"
        revision, value = await versions.keeper().wait.remote(topic)
        await tenant.apply(value)
        host = tenant.host
        app = ModelApp(tenant, keyring, host.max_body_bytes, host.max_in_air, gradients=self._gradients)
        tasks = (
            asyncio.create_task(versions.follow(topic, tenant.apply, revision)),
            asyncio.create_task(versions.report(name, host.traffic.news)),
        )
        self._doors[name] = Door(spec, tenant, app, Servicer(tenant, keyring, host.max_body_bytes), tasks)
        shortcut.publish(f"{gateway.MODEL_PREFIX}{name}", app)
        if spec.prewarm:
            async with tenant.held():
                pass

    def _leave(self, name: str) -> None:
        shortcut.unpublish(f"{gateway.MODEL_PREFIX}{name}")
        door = self._doors.pop(name)
        for task in door.tasks:
            task.cancel()
        self._shelf.forget(door.tenant)
        door.tenant.host.traffic.close()

    async def _admission(self, auth: str) -> Admission:
        if auth not in self._admissions:
            admission = Admission(auth)
            await admission.open()
            self._admissions[auth] = admission
        return self._admissions[auth]


class SharedApp:
    """ASGI: what the shortcut didn't take, since it came Serve's way or is about a model that isn't here."""

    def __init__(self, doors: Mapping[str, Door]) -> None:
        self._doors = doors

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        name = scope["path"].removeprefix(gateway.MODEL_PREFIX).split("/")[0]
        door = self._doors.get(name)
        if door is None:
            status, body = await gateway.no_such_model(name, gateway.served_models)
            await respond(send, status, [JSON], body)
        else:
            await door.app({**scope, "root_path": f"{gateway.MODEL_PREFIX}{name}"}, receive, send)


def _about_a_model(name: str) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    async def answer(self: SharedServicer, request: Any, grpc_context: Any) -> Any:
        model = subject(name, request)
        servicer = self.servicer(model)
        if servicer is not None:
            return await getattr(servicer, name)(request, grpc_context)
        if name != "ModelReady":  # a model that isn't there isn't ready, which is no error
            refuse(model, grpc_context)
        return CALLS[name][1]()

    return answer


class SharedServicer(Desk):
    """The protocol's calls for all models of a replica: each goes to the servicer of the model that it names."""

    def __init__(
        self, servicer: Callable[[str], Servicer | None], served: Callable[[], Index], readiness: Callable[[], bool]
    ) -> None:
        super().__init__(served, readiness)
        self.servicer = servicer

    ModelReady = _about_a_model("ModelReady")
    ModelMetadata = _about_a_model("ModelMetadata")
    ModelInfer = _about_a_model("ModelInfer")
    ModelConfig = _about_a_model("ModelConfig")
    ModelStatistics = _about_a_model("ModelStatistics")
