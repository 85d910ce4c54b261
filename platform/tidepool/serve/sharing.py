"""Which models share replicas: in and out, and the application that they share; for a driver that is connected."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tidepool import __version__
from tidepool.artifact import Artifact
from tidepool.serve import gateway, shared, tokens, versions
from tidepool.serve.rollout import LOGGING, roll_out, tell
from tidepool.serve.roster import Roster
from tidepool.serve.shelf import too_large
from tidepool.settings import Settings
from tidepool.spec import Spec

if TYPE_CHECKING:
    from ray.serve import Application

PREFIX = "/v2/models"
NUM_CPUS = 0.5
"""Logical CPUs that a replica reserves."""
MAX_ONGOING_REQUESTS = 1000
"""That Serve hands to a replica where its requests go Serve's way: each model has its own limits."""


def join(settings: Settings, spec: Spec, artifact: Artifact) -> None:
    """Add a model to those that share replicas, or change how it is served; the first one starts the replicas.

    Raises:
        DoesNotFit: its file alone is larger than the memory of all.
        SpecError: it takes tokens, and the settings don't say whose.
        ClusterError: the replicas don't start.
    """
    from ray import serve

    budget, roster = _budget(settings), Roster(settings.roster_file)
    if artifact.onnx.stat().st_size > budget:
        raise too_large(artifact.onnx.stat().st_size, budget)
    if spec.serve.auth == "jwt":
        tokens.of(settings)
    if gateway.SHARED_APPLICATION not in serve.status().applications:
        roster.clear()  # of an earlier cluster, whose models went with it
    roster.add(spec.name, spec.serve)
    tell(versions.SHARED)
    fingerprint = f"{__version__}:{budget}:{settings.shared_replicas}"
    roll_out(gateway.SHARED_APPLICATION, PREFIX, fingerprint, lambda: _application(settings))


def leave(settings: Settings, name: str) -> bool:
    """Take a model from those that share replicas, and with the last one the replicas; False if it wasn't one."""
    from ray import serve

    roster = Roster(settings.roster_file)
    if gateway.SHARED_APPLICATION not in serve.status().applications or not roster.remove(name):
        return False
    if roster.load():
        tell(versions.SHARED)
    else:
        serve.delete(gateway.SHARED_APPLICATION)
    return True


def _application(settings: Settings) -> Application:
    from ray import serve

    options: dict[str, Any] = {
        "name": "Shared",
        "num_replicas": settings.shared_replicas,
        "max_ongoing_requests": MAX_ONGOING_REQUESTS,
        "logging_config": LOGGING,
        "graceful_shutdown_timeout_s": 5.0,
        "graceful_shutdown_wait_loop_s": 0.2,
        "ray_actor_options": {"num_cpus": NUM_CPUS},
        "max_surge_percent": 100,
    }
    return serve.deployment(**options)(serve.ingress()(shared.Shared)).bind(_budget(settings))


def _budget(settings: Settings) -> int:
    return int(settings.shared_mb * 1e6)
