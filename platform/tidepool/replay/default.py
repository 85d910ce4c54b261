"""Ray's default autoscaling policy on a shared pool: what tidepool's own is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tidepool.serve.autoscale import PoolPolicy

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext


class RayPolicy(PoolPolicy):
    """As many replicas as Ray's policy of queue lengths says; the pool is told as well."""

    def decide(self, context: AutoscalingContext) -> float:
        """Ray's number."""
        from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy

        return float(replica_queue_length_autoscaling_policy(context)[0])
