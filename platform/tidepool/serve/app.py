"""Serve deployments: a model's application, the gateway's, and how they get on a cluster.

`application` is what a deployments/<name>/app.py exports; `start`, `deploy` and `undeploy` are what the CLI calls, with
a driver that is connected to the cluster. Each touches one application and leaves the others alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidepool import __version__, storage
from tidepool.artifact import Artifact, open_artifact
from tidepool.errors import ModelNotFound
from tidepool.pool import coordinator
from tidepool.serve import autoscale, gateway, sharing, versions
from tidepool.serve.auth import KeyFile, digest
from tidepool.serve.replica import Gateway, Model
from tidepool.serve.rollout import LOGGING, announce, await_answer, await_listener, roll_out
from tidepool.settings import Settings
from tidepool.spec import Spec, spec_of

if TYPE_CHECKING:
    from ray.serve import Application

    from tidepool.registry.entities import ModelVersion


def application(spec: Spec) -> Application:
    """The Serve application of the model that `spec` describes."""
    from ray import serve

    low, high = spec.serve.num_replicas
    resource = "CPU" if spec.serve.accelerator == "auto" else spec.serve.accelerator
    options: dict[str, Any] = {
        "name": "Model",
        "max_ongoing_requests": spec.serve.max_ongoing_requests,
        "max_queued_requests": spec.serve.max_queued_requests,
        "logging_config": LOGGING,
        "graceful_shutdown_timeout_s": 5.0,
        "graceful_shutdown_wait_loop_s": 0.2,
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
            "downscale_delay_s": 0.5,  # the policy itself tells a fall from a fluctuation
            "downscale_to_zero_delay_s": 10.0,
            "policy": autoscale.policy(resource, spec.serve.num_cpus, spec.pool.priority, spec.serve.slo_p99_ms),
        }
    deployment = serve.deployment(**options)(serve.ingress()(Model))
    return deployment.bind(spec.name, spec.serve.model_dump())


def start(settings: Settings, http_port: int, grpc_port: int, host: str = "127.0.0.1") -> None:
    """Start Serve's front end at this address with the gateway behind it, the versions' keeper and the pool's
    coordinator; make the CLI's API key if it has none. What runs already is left as it is.

    `host` is loopback: whoever wants the service on the network puts an ingress with TLS in front. On several machines
    it can't be, since their front ends ask one another.

    Raises:
        ClusterError: nothing answers there, or Serve was started without gRPC.
    """
    from ray import serve

    ensure_cli_key(settings)
    serve.start(
        http_options={"host": host, "port": http_port},
        grpc_options={"port": grpc_port, "grpc_servicer_functions": ["tidepool.serve.grpc.add_to_server"]},
    )
    coordinator.start(settings)
    versions.keeper(settings.standby).attend.remote()
    deployment = serve.deployment(
        name="Gateway",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        max_ongoing_requests=1000,
        logging_config=LOGGING,
        graceful_shutdown_timeout_s=5.0,
    )(serve.ingress(gateway.build)(Gateway))
    address = f"127.0.0.1:{grpc_port}"
    roll_out(gateway.APPLICATION, "/", f"{__version__}:{address}", lambda: deployment.bind(address))
    await_answer(http_port, "/v2/health/live")  # ready is what all that is served is
    await_listener(grpc_port)


def ensure_cli_key(settings: Settings) -> None:
    """Make the CLI's API key, unless it has one that the keys file knows.

    Raises:
        StorageError: either file can't be read or written.
    """
    keys, file = KeyFile(settings.keys_file), settings.cli_key_file
    with storage.explained("read the CLI's key", file):
        text = file.read_text() if file.exists() else ""
    if digest(text) not in {key.sha256 for key in keys.load()}:
        storage.write_text(file, keys.create("cli"), mode=0o600)


def deploy(settings: Settings, name: str, http_port: int) -> Spec:
    """Put the champion of a registered model into service, as its spec has it: with replicas of its own, or among those
    that share some. Returns the spec that it was made with.

    Raises:
        ModelNotFound: no such model, or it has no champion.
        DoesNotFit: it is larger than the memory of all shared models.
        ClusterError: its replicas don't start, with their own reason.
    """
    from ray import serve

    champion, artifact, spec = registered(settings, name)
    path = f"{gateway.MODEL_PREFIX}{name}"
    announce(name)
    if spec.serve.placement == "shared":
        sharing.join(settings, spec, artifact)
        if name in serve.status().applications:
            serve.delete(name)
    else:
        roll_out(name, path, f"{__version__}:{spec.digest('name', 'serve')}", lambda: application(spec))
        sharing.leave(settings, name)
    await_answer(http_port, f"{path}/versions/{champion.version}/ready")
    return spec


def undeploy(settings: Settings, name: str) -> None:
    """Take a model out of service.

    Raises:
        ModelNotFound: it isn't in service.
    """
    from ray import serve

    served = [model["name"] for model in gateway.served_models()]
    if name not in served:
        raise ModelNotFound("no such model is in service", seen=name, allowed=", ".join(served) or "none is deployed")
    if not sharing.leave(settings, name):
        serve.delete(name)


def registered(settings: Settings, name: str) -> tuple[ModelVersion, Artifact, Spec]:
    """The champion of a registered model, its artifact, and the spec that it was made with.

    Raises:
        ModelNotFound: no such model, or it has no champion.
        SpecError: it was made by another version of tidepool, whose specs have other keys.
    """
    from tidepool.registry.client import Registry

    champion = Registry(settings.registry, settings.storage("artifacts")).version(name, "champion")
    artifact = open_artifact(champion.uri, settings.root / "cache", champion.digest)
    spec = spec_of(artifact.lineage["spec"], f"the lineage of {name} version {champion.version}")
    return champion, artifact, spec
