"""Serve's demand for accelerators, told to the pool before Serve's own delays.

Serve calls the policy on every turn of its control loop, inside its controller: it may neither block there nor fail.
So a thread of its own carries the wish to the pool's coordinator, the newest one only; if that doesn't answer, Serve
scales as it would without a pool. The class travels to the controller by value, so it uses nothing of tidepool there.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")

COORDINATOR, NAMESPACE = "tidepool-pool", "tidepool"
BUSY = 0.6
"""Share of time that a replica should be at work: what is left over takes the fluctuations."""
LATE = 0.5
"""A backlog over this share of the latency objective calls for one replica more, however busy they are."""
REPEAT_S = 2.0
"""A wish that stays the same is told again so often, for a coordinator that has restarted."""


def replica_options(resource: str, num_cpus: float) -> dict[str, Any]:
    """`ray_actor_options` of a replica that holds one of a resource, besides logical CPUs."""
    if resource == "CPU":
        return {"num_cpus": num_cpus}
    held = {"num_gpus": 1} if resource == "GPU" else {"resources": {resource: 1}}
    return {"num_cpus": num_cpus, **held}


def policy(resource: str, num_cpus: float, priority: int, slo_p99_ms: float) -> dict[str, Any]:
    """`policy` of Serve's autoscaling configuration, for replicas with `replica_options(resource, num_cpus)`."""
    facts = {"accelerator": resource, "per_replica": num_cpus if resource == "CPU" else 1.0}
    kwargs = {**facts, "priority": priority, "slo_p99_ms": slo_p99_ms}
    return {"policy_function": f"{__name__}:{PoolPolicy.__name__}", "policy_kwargs": kwargs}


class PoolPolicy:
    """As many replicas as keep each of them free for a share of its time, and in time; the pool is told as well.

    What goes Serve's own way (to an application without any replica, say) counts by Ray's policy of queue lengths.
    """

    def __init__(self, accelerator: str, per_replica: float, priority: int = 0, slo_p99_ms: float = 100.0) -> None:
        """`per_replica`: how much of the resource `accelerator` a replica takes."""
        self._accelerator = accelerator
        self._facts = {"per_replica": per_replica, "priority": priority, "slo_p99_ms": slo_p99_ms}
        self._wish: dict[str, Any] | None = None
        self._told: dict[str, Any] | None = None
        self._wake = threading.Event()
        threading.Thread(target=self._tell, daemon=True).start()

    def __call__(self, context: AutoscalingContext) -> tuple[int | float, dict[str, Any]]:
        """The replicas that the load calls for; Serve applies bounds and delays afterwards."""
        from math import ceil

        from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

        desired, state = replica_queue_length_autoscaling_policy(context)
        desired = max(desired, self._for_load(context))
        least, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
        self._wish = {
            "name": context.app_name,
            "wanted": min(max(ceil(desired), least), most),
            "min_replicas": least,
            "max_replicas": most,
            **self._facts,
        }
        if self._wish != self._told:
            self._wake.set()
        return desired, state

    @staticmethod
    def _for_load(context: AutoscalingContext) -> float:
        vitals = context.aggregated_metrics or {}
        busy, late = (list(vitals.get(name, {}).values()) for name in ("busy", "late"))
        wanted = sum(busy) / BUSY
        if late and sum(late) / len(late) > LATE:
            wanted = max(wanted, len(late) + 1.0)
        return float(wanted)

    def _tell(self) -> None:
        import ray

        while True:
            self._wake.wait(REPEAT_S)
            self._wake.clear()
            wish = self._wish
            if wish is None:
                continue
            try:
                coordinator = ray.get_actor(COORDINATOR, namespace=NAMESPACE)
                coordinator.want.remote(self._accelerator, **wish)
                self._told = wish
            except Exception as error:  # no coordinator, or a cluster that is going down
                log.debug("the pool wasn't told what %s needs: %s", wish["name"], error)
                time.sleep(REPEAT_S / 4)
