"""What a cluster can compute on: CPUs, GPUs, TPUs, other accelerators, and resources that a user named.

Ray keeps them all in one table of names and amounts; an accelerator is what in it is no CPU, memory or bookkeeping.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from tidepool.errors import ClusterError

PREFERENCE = ("GPU", "TPU", "NPU", "HPU", "neuron_cores", "RBLN", "FURIOSA", "TTNPU", "MBLT")
"""Resource names of the accelerators that Ray detects by itself; `auto` takes the first that is there."""

NO_ACCELERATOR = ("CPU", "memory", "object_store_memory")
BOOKKEEPING = ("node:", "accelerator_type:", "bundle_group_")
LEAST_CPUS = 8


def logical_cpus() -> int:
    """CPUs that a local cluster claims to have: the cores this process may use, but at least eight.

    Training, data tasks and replicas share a laptop. Ray counts what they reserve and never shares a CPU, so with the
    two or four real ones a model in service would keep training waiting for ever. The operating system shares well.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(LEAST_CPUS, cores)


def accelerators(resources: Mapping[str, float]) -> dict[str, float]:
    """The accelerators and named resources in Ray's table of a node or a cluster, in order of preference."""
    found = {
        name: amount
        for name, amount in resources.items()
        if amount > 0
        and name not in NO_ACCELERATOR
        and not name.startswith(BOOKKEEPING)
        and "_group_" not in name  # a placement group's share of another resource
    }
    rank = {name: place for place, name in enumerate(PREFERENCE)}
    return dict(sorted(found.items(), key=lambda item: (rank.get(item[0], len(rank)), item[0])))


def models(resources: Mapping[str, float]) -> list[str]:
    """Which accelerators they are, e.g. `["A10G"]`."""
    prefix = "accelerator_type:"
    return sorted(name.removeprefix(prefix) for name in resources if name.startswith(prefix))


def accelerator_resource(wanted: str, resources: Mapping[str, float]) -> str:
    """The resource that a worker or replica asks for: `accelerator` of the spec, against what the cluster has.

    `auto` is the best accelerator there is, or "CPU"; it never takes a resource that only its owner understands.

    Raises:
        ClusterError: there is no such resource; lists those that exist.
    """
    present = accelerators(resources)
    if wanted == "auto":
        return next((name for name in PREFERENCE if name in present), "CPU")
    if wanted == "CPU" or wanted in present:
        return wanted
    existing = ", ".join(f"{name} ({amount:g})" for name, amount in present.items())
    raise ClusterError(
        f"the cluster has no {wanted}",
        seen=f"accelerator: {wanted}",
        allowed="auto, CPU" + (f", {existing}" if existing else ""),
        remedy="correct `accelerator` in the spec, or start the cluster with --num-gpus or --resources",
    )


def reachable_resources() -> dict[str, float]:
    """Resources of the connected cluster: those of its nodes, and those that its autoscaler may still add."""
    import ray
    from ray._private.state import state

    present = ray.cluster_resources()
    possible = state.get_max_resources_from_cluster_config() or {}
    return {name: max(present.get(name, 0), possible.get(name, 0)) for name in {*present, *possible}}
