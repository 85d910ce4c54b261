"""What a cluster has and does: nodes, resources, applications."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from tidepool.cluster import head
from tidepool.cluster.local import connect, elsewhere, running
from tidepool.settings import Settings


@dataclass(frozen=True)
class Application:
    """A Serve application, as `status` found it."""

    name: str
    status: str
    route_prefix: str
    """Empty if the application has no route."""
    replicas: dict[str, dict[str, int]]
    """By deployment, how many replicas are in which state."""
    message: str


@dataclass(frozen=True)
class Status:
    """What a cluster has and does."""

    address: str
    nodes: list[dict[str, Any]]
    """`address`, `alive`, `resources` and `labels` of each node."""
    used: dict[str, tuple[float, float]]
    """By resource, how much is reserved and how much there is."""
    applications: list[Application]


def status(settings: Settings) -> Status:
    """What the cluster at RAY_ADDRESS, or else the local one, has and does. Takes about 2 s.

    Raises:
        NoCluster: RAY_ADDRESS isn't set and no local cluster runs.
        ClusterError: nothing answers at RAY_ADDRESS.
    """
    address = os.environ.get("RAY_ADDRESS") or running(settings).address
    prefixes = {} if elsewhere(settings) else _route_prefixes(running(settings).http_port)
    with connect(settings):
        import ray
        from ray import serve

        total, free = ray.cluster_resources(), ray.available_resources()
        return Status(
            address=address,
            nodes=[
                {
                    "address": node["NodeManagerAddress"],
                    "alive": node["Alive"],
                    "resources": node["Resources"],
                    "labels": node["Labels"],
                }
                for node in ray.nodes()
            ],
            used={name: (amount - free.get(name, 0.0), amount) for name, amount in sorted(total.items())},
            applications=[
                Application(
                    name=name,
                    status=str(application.status.value),
                    route_prefix=prefixes.get(name, ""),
                    replicas={
                        deployment: {str(state): count for state, count in overview.replica_states.items()}
                        for deployment, overview in application.deployments.items()
                    },
                    message=application.message,
                )
                for name, application in sorted(serve.status().applications.items())
            ],
        )


def _route_prefixes(http_port: int) -> dict[str, str]:
    """Route prefix of every application, from the front end; none if it doesn't answer."""
    try:
        routes = json.loads(head.get(f"http://127.0.0.1:{http_port}/-/routes", timeout_s=2))
    except (OSError, ValueError):
        return {}
    return {name: prefix for prefix, name in routes.items()}
