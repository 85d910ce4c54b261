"""Serve deployments: a model's application, the gateway's, and how they get on a cluster.

`application` is what a deployments/<name>/app.py exports; `start`, `deploy` and `undeploy` are what the CLI calls, with
a driver that is connected to the cluster. Each touches one application and leaves the others alone.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tidepool import __version__
from tidepool.artifact import open_artifact
from tidepool.errors import ClusterError, ModelNotFound, TidepoolError
from tidepool.pool import coordinator
from tidepool.serve import autoscale, gateway, grpc, jwks, shortcut, tallies, tokens, versions
from tidepool.serve.auth import Key, KeyFile, Keyring
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion, load_version
from tidepool.serve.reception import Reception
from tidepool.serve.rest import ModelApp
from tidepool.serve.versions import Entry, VersionTable
from tidepool.serve.vitals import Vitals
from tidepool.settings import Settings
from tidepool.spec import ServeSpec, Spec, spec_of

if TYPE_CHECKING:
    from ray.serve import Application

    from tidepool.registry.entities import ModelVersion

log = logging.getLogger(__name__)

LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
"""No access log: its buffer holds up a replica for 18 ms at every thousandth request."""


class Model:
    """A replica of one model: loads the versions of its table, and answers."""

    async def __init__(self, name: str, serve_spec: dict[str, Any]) -> None:  # type: ignore[misc]
        spec = ServeSpec(**serve_spec)
        self._dataplane = Dataplane(name, int(spec.cache_mb * 1e6))
        self._tokens = tokens.of(Settings()) if spec.auth == "jwt" else None
        self._keyring = None if spec.auth == "none" else Keyring(tokens=self._tokens)
        self._max_body_bytes = int(spec.max_body_mb * 1e6)
        self._slo_s = spec.slo_p99_ms / 1e3
        self._max_waiting = spec.max_queued_requests if spec.max_queued_requests >= 0 else sys.maxsize
        self._max_in_air = spec.max_ongoing_requests + self._max_waiting
        self._vitals = Vitals(self._slo_s)
        topics: dict[str, Callable[[Any], Any]] = {f"model:{name}": self._apply_versions}
        if self._keyring is not None:
            topics[versions.KEYS] = self._apply_keys
        self._tasks = []
        for topic, apply in topics.items():
            revision, value = await versions.keeper().wait.remote(topic)
            await apply(value)
            self._tasks.append(asyncio.create_task(versions.follow(topic, apply, revision)))
        if self._keyring is not None:
            self._tasks.append(asyncio.create_task(tallies.share(self._keyring.limits, tallies.teller())))
        if self._keyring is not None and self._tokens is not None:
            published = (self._tokens, str(Settings().jwt_jwks), self._keyring.forget)
            await jwks.refresh(*published)
            self._tasks.append(asyncio.create_task(jwks.follow(*published)))

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
        return self._vitals.sample(self._dataplane.ran_s, self._dataplane.backlog_s)

    def check_health(self) -> None:
        """Serve calls this every few seconds and replaces a replica in which it raises."""
        _ = self._dataplane.lineup

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
                except TidepoolError as error:
                    if entry.version == table.champion:
                        raise
                    loaded.pop(entry.version, None)
                    log.warning("version %s is left out: %s", entry.version, error)
            if entry.version == table.champion:
                self._dataplane.flip(Lineup(table.champion, dict(loaded)))
        wanted = {entry.version: loaded[entry.version] for entry in table.entries if entry.version in loaded}
        self._dataplane.flip(Lineup(table.champion, wanted))

    def _load(self, entry: Entry) -> LoadedVersion:
        artifact = open_artifact(entry.uri, Settings().root / "cache", entry.digest)
        return load_version(entry.version, artifact, self._slo_s, self._max_waiting)

    async def _apply_keys(self, value: list[dict[str, Any]]) -> None:
        assert self._keyring is not None
        self._keyring.replace(Key.from_json(entry) for entry in value)


class Gateway:
    """The replica at `/`: what is about no model, and what is about none that is served."""

    def __init__(self, grpc_address: str) -> None:
        grpc.answer_with(self, Reception(grpc_address, gateway.served_models))


def application(spec: Spec) -> Application:
    """The Serve application of the model that `spec` describes."""
    from ray import serve

    low, high = spec.serve.num_replicas
    # The engine runs on CPU; a spec that names an accelerator has its replicas hold one all the same.
    resource = "CPU" if spec.serve.accelerator == "auto" else spec.serve.accelerator
    options: dict[str, Any] = {
        "name": "Model",
        "max_ongoing_requests": spec.serve.max_ongoing_requests,
        "max_queued_requests": spec.serve.max_queued_requests,
        "logging_config": LOGGING,
        "graceful_shutdown_timeout_s": 5.0,
        "ray_actor_options": autoscale.replica_options(resource, spec.serve.num_cpus),
        "max_surge_percent": 100,
    }
    if low == high:
        options["num_replicas"] = low
    else:
        options["autoscaling_config"] = {
            "min_replicas": low,
            "max_replicas": high,
            "target_ongoing_requests": max(1, spec.serve.max_ongoing_requests // 8),
            # Ray's defaults take 40 s and more to notice load; see docs/decisions.
            "metrics_interval_s": 0.2,
            "look_back_period_s": 0.5,
            "upscale_delay_s": 0.0,
            "downscale_delay_s": 2.0,
            "policy": autoscale.policy(resource, spec.serve.num_cpus, spec.pool.priority, spec.serve.slo_p99_ms),
        }
    deployment = serve.deployment(**options)(serve.ingress()(Model))
    return deployment.bind(spec.name, spec.serve.model_dump())


def start(settings: Settings, http_port: int, grpc_port: int) -> None:
    """Start Serve's front end on these ports with the gateway behind it, and the pool's coordinator; make the CLI's API
    key if it has none.
    """
    from ray import serve

    if not settings.cli_key_file.exists():
        key = KeyFile(settings.keys_file).create("cli")
        settings.cli_key_file.touch(mode=0o600)
        settings.cli_key_file.write_text(key)
    # Loopback: whoever wants the service on the network puts an ingress with TLS in front.
    serve.start(
        http_options={"host": "127.0.0.1", "port": http_port},
        grpc_options={"port": grpc_port, "grpc_servicer_functions": ["tidepool.serve.grpc.add_to_server"]},
    )
    coordinator.start(settings)
    deployment = serve.deployment(
        name="Gateway",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        logging_config=LOGGING,
        graceful_shutdown_timeout_s=5.0,
    )(serve.ingress(gateway.build)(Gateway))
    serve.run(deployment.bind(f"127.0.0.1:{grpc_port}"), name=gateway.APPLICATION, route_prefix="/")
    await_answer(http_port, "/v2/health/ready")


def deploy(settings: Settings, name: str, http_port: int) -> Spec:
    """Put the champion of a registered model into service; returns the spec that it was made with.

    Raises:
        ModelNotFound: no such model, or it has no champion.
        ClusterError: its replicas don't start, with their own reason.
    """
    import ray
    from ray import serve

    champion, spec = registered(settings, name)
    if not _is_in_service(name, spec):
        try:
            serve.run(application(spec), name=name, route_prefix=f"{gateway.MODEL_PREFIX}{name}")
        except Exception as error:
            raise ClusterError(f"{name} doesn't start", seen=_reason(name, error), remedy="correct that") from error
        ray.get(versions.keeper().note.remote(name, _fingerprint(spec)))
    announce(name)
    await_answer(http_port, f"{gateway.MODEL_PREFIX}{name}/versions/{champion.version}/ready")
    return spec


def undeploy(name: str) -> None:
    """Take a model out of service.

    Raises:
        ModelNotFound: it isn't in service.
    """
    from ray import serve

    applications = serve.status().applications
    if name not in applications or name == gateway.APPLICATION:
        served = ", ".join(app for app in applications if app != gateway.APPLICATION)
        raise ModelNotFound("no such model is in service", seen=name, allowed=served or "none is deployed")
    serve.delete(name)


def announce(*names: str, keys: bool = False) -> None:
    """Tell the replicas at once that the versions of these models, or the keys, have changed."""
    import ray

    topics = [f"model:{name}" for name in names] + ([versions.KEYS] if keys else [])
    ray.get([versions.keeper().refresh.remote(topic) for topic in topics])


def registered(settings: Settings, name: str) -> tuple[ModelVersion, Spec]:
    """The champion of a registered model, and the spec that it was made with.

    Raises:
        ModelNotFound: no such model, or it has no champion.
        SpecError: it was made by another version of tidepool, whose specs have other keys.
    """
    from tidepool.registry.client import Registry

    champion = Registry(settings.registry, settings.storage("artifacts")).version(name, "champion")
    artifact = open_artifact(champion.uri, settings.root / "cache", champion.digest)
    return champion, spec_of(artifact.lineage["spec"], f"the lineage of {name} version {champion.version}")


def _reason(name: str, error: Exception) -> str:
    """Why an application doesn't start: what its replicas said, the last of it."""
    from ray import serve

    status = serve.status().applications.get(name)
    if status is None:
        return str(error)
    said = [deployment.message for deployment in status.deployments.values() if deployment.message]
    return (" ".join(said) or status.message)[-2000:]


def _is_in_service(name: str, spec: Spec) -> bool:
    """Whether the application runs as `spec` wants it: Serve itself would replace its replicas all the same."""
    import ray
    from ray import serve

    status = serve.status().applications.get(name)
    if status is None or status.status != "RUNNING":
        return False
    return bool(ray.get(versions.keeper().noted.remote(name)) == _fingerprint(spec))


def _fingerprint(spec: Spec) -> str:
    """What an application's replicas are made from, apart from the versions that they load."""
    return f"{__version__}:{spec.digest('name', 'serve')}"


def await_answer(http_port: int, path: str, deadline_s: float = 30.0) -> None:
    """Wait until a GET of `path` is answered with 200.

    Raises:
        ClusterError: it isn't within `deadline_s`.
    """
    import httpx

    until = time.monotonic() + deadline_s
    seen: object = None
    while time.monotonic() < until:
        try:
            seen = httpx.get(f"http://127.0.0.1:{http_port}{path}", timeout=2.0).status_code
        except httpx.TransportError as error:
            seen = error
        if seen == 200:
            return
        time.sleep(0.05)
    raise ClusterError(f"port {http_port} doesn't answer {path}", seen=seen, remedy="`tidepool doctor`")
