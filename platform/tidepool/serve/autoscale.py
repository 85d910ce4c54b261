"""Serve's demand for accelerators, told to the pool before Serve's own delays.

Serve calls the policy on every turn of its control loop, inside its controller: it may neither block there nor fail.
So a thread of its own carries the wish to the pool's coordinator, the newest one only; if that doesn't answer, Serve
scales as it would without a pool. The same thread reckons what a replica can take, which lasts tens of milliseconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tidepool.errors import TidepoolError
from tidepool.pool.coordinator import NAME, NAMESPACE
from tidepool.serve.objective import Objective, Vitals

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")

BUSY = 0.6
"""Share of time that a replica should be at work: what is left over takes the fluctuations."""
FULL = 0.9
"""The same where it is known how many replicas hold the objective: only for work that this doesn't count."""
STEADY_S = 1.0
"""And in the mean of so long: requests that happen to come at once keep all replicas busy for a moment."""
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


def policy(
    resource: str, num_cpus: float, priority: int, slo_p99_ms: float, by: type[PoolPolicy] | None = None
) -> dict[str, Any]:
    """`policy` of Serve's autoscaling configuration, for replicas with `replica_options(resource, num_cpus)`. `by`: the
    class that decides, `PoolPolicy` or one made of it.
    """
    decider = by or PoolPolicy
    facts = {"accelerator": resource, "per_replica": num_cpus if resource == "CPU" else 1.0}
    kwargs = {**facts, "priority": priority, "slo_p99_ms": slo_p99_ms}
    return {"policy_function": f"{decider.__module__}:{decider.__name__}", "policy_kwargs": kwargs}


class PoolPolicy:
    """As many replicas as hold the latency objective at what arrives now and in the next half minute; the pool is told.

    Until a replica has said what its requests cost, as many as keep each of them free for a share of its time. What
    goes Serve's own way (to an application without any replica, say) counts by Ray's policy of queue lengths.
    """

    def __init__(self, accelerator: str, per_replica: float, priority: int = 0, slo_p99_ms: float = 100.0) -> None:
        """`per_replica`: how much of the resource `accelerator` a replica takes."""
        self._accelerator = accelerator
        self._facts = {"per_replica": per_replica, "priority": priority, "slo_p99_ms": slo_p99_ms}
        self._objective = Objective(slo_p99_ms / 1e3)
        self._loads: deque[tuple[float, float]] = deque()
        """(when, replicas for the load) of the last `STEADY_S`."""
        self._wish: dict[str, Any] | None = None
        self._told: dict[str, Any] | None = None
        self._seen: tuple[Vitals, int] = ({}, 1)
        """What the replicas last said, and how many there may be."""
        self._wake = threading.Event()
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
        """The replicas that the load calls for; Serve applies bounds and delays afterwards."""
        from math import ceil

        desired = self.decide(context)
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
        return desired, {}

    def decide(self, context: AutoscalingContext) -> float:
        """Replicas, not yet within any bounds."""
        vitals = {name: list(of.values()) for name, of in (context.aggregated_metrics or {}).items()}
        self._seen = vitals, context.capacity_adjusted_max_replicas
        now = time.monotonic()
        holding = self._objective.replicas(vitals, now)
        if holding is not None and context.current_num_replicas:
            return max(float(holding), self.steadily(for_load(vitals, FULL), now))
        from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

        if "one_s" in vitals:
            self._wake.set()  # what requests cost can be learned now
        by_queues, _ = replica_queue_length_autoscaling_policy(context)
        return max(float(by_queues), for_load(vitals, BUSY))

    def steadily(self, load: float, now: float) -> float:
        """What the load of the last `STEADY_S` called for in the mean."""
        self._loads.append((now, load))
        while self._loads[0][0] < now - STEADY_S:
            self._loads.popleft()
        return fmean(replicas for _, replicas in self._loads)

    def _work(self) -> None:
        while True:
            self._wake.wait(REPEAT_S)
            self._wake.clear()
            self._tell(self._wish)
            try:
                self._objective.learn(*self._seen)
            except TidepoolError as error:
                log.warning("what replicas say of their costs is no curve: %s", error)

    def _tell(self, wish: dict[str, Any] | None) -> None:
        if wish is None:
            return
        import ray

        try:
            coordinator = ray.get_actor(NAME, namespace=NAMESPACE)
            coordinator.want.remote(self._accelerator, **wish)
            self._told = wish
        except Exception as error:  # no coordinator, or a cluster that is going down
            log.debug("the pool wasn't told what %s needs: %s", wish["name"], error)
            time.sleep(REPEAT_S / 4)


def for_load(vitals: Vitals, share: float) -> float:
    """As many replicas as keep each of them at work for a share of its time at most; one more if they are late.

    >>> for_load({"busy": [1.0, 0.8], "late": [0.1, 0.2]}, 0.6)
    3.0
    """
    busy, late = (vitals.get(name, ()) for name in ("busy", "late"))
    wanted = sum(busy) / share
    if late and sum(late) / len(late) > LATE:
        wanted = max(wanted, len(late) + 1.0)
    return wanted
