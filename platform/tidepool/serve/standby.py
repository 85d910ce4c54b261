"""A started process at hand on every machine, for the next replica there.

Most of the seconds between the wish for a replica and its first answer go into a new Python process: starting it, and
importing what replicas run with. So every node has one of Ray's workers more than it uses. `Standby` orders them and
leaves a note for each; whichever worker starts next on that node takes the note, in `warming`, signs with its process
id, and does the imports. What is signed and still unused is at hand.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

NAMESPACE = b"tidepool"
EVERY_S = 2.0
"""Between two looks at the nodes."""
MISSED_S = 2.0
"""Since one was missed, before the next is ordered: the replica that took it has the processors for its start."""
COMES_S = 60.0
"""For a worker that was ordered to take its note; twice as long after each that didn't."""
STAYS_S = 3600
"""Ray ends a worker that nobody has used for so long."""
ANSWERS_S = 2.0
"""For a node to answer; one that is slower has other worries."""


class Standby:
    """Keeps `count` unused workers on every node that can hold a replica."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._count, self._clock = count, clock
        self._missed: dict[str, float] = {}
        self._orders: dict[str, _Order] = {}

    async def keep(self) -> None:
        """Look, and order what is missing, for ever. What fails only lets replicas start as slowly as without it."""
        while self._count:
            try:
                await asyncio.to_thread(lambda: self.replenish(raylets()))
            except Exception as error:  # the calls are Ray's own affair: of which kind, depends on its version
                log.debug("the nodes can't be asked for workers: %s", error)
            await asyncio.sleep(EVERY_S)

    def replenish(self, nodes: Iterable[Raylet]) -> None:
        """Order a worker on each node that has had too few for a while, unless one is on its way there."""
        for node in nodes:
            try:
                self._see(node)
            except Exception as error:
                log.debug("no worker was started in advance on %s: %s", node.id, error)

    def _see(self, node: Raylet) -> None:
        now = self._clock()
        if node.is_ordered():
            order = self._orders.setdefault(node.id, _Order(now))
            if now - order.at < order.patience_s:
                return
            # Where nobody has taken the note, perhaps nobody ever will, and each order adds one to the unused.
            self._order(node, _Order(now, min(2 * order.patience_s, STAYS_S)))
        elif node.unused() >= self._count:
            self._missed.pop(node.id, None)
        elif now - self._missed.setdefault(node.id, now) >= MISSED_S:
            self._order(node, _Order(now))

    def _order(self, node: Raylet, order: _Order) -> None:
        self._missed.pop(node.id, None)
        self._orders[node.id] = order  # before the call: one that fails may have been heard all the same
        node.order()


@dataclass(frozen=True)
class _Order:
    """When a worker was ordered, and how long to wait for it."""

    at: float
    patience_s: float = COMES_S


class Raylet:
    """Ray's daemon on one node. Source: NodeManagerService in Ray's node_manager.proto."""

    def __init__(self, node: Mapping[str, Any]) -> None:
        """`node` as `ray.nodes()` has it."""
        self.id = str(node["NodeID"])
        self._address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"

    def unused(self) -> int:
        """How many workers are at hand. Those that are not any more are struck off."""
        from ray.experimental import internal_kv

        signed = self.signed()
        if not signed:
            return 0
        idle = self._idle()
        for pid in signed - idle:
            internal_kv._internal_kv_del(signature(self.id, pid), namespace=NAMESPACE)
        return len(signed & idle)

    def signed(self) -> set[int]:
        """Process ids of the workers that have taken a note, used or not."""
        from ray.experimental import internal_kv

        keys = internal_kv._internal_kv_list(signature(self.id, ""), namespace=NAMESPACE)
        return {int(key.rpartition(b":")[2]) for key in keys}

    def is_ordered(self) -> bool:
        """Whether a note waits for a worker."""
        from ray.experimental import internal_kv

        return bool(internal_kv._internal_kv_exists(note(self.id), namespace=NAMESPACE))

    def order(self) -> None:
        """Start one, for whatever job needs it first."""
        from ray.core.generated import node_manager_pb2 as pb
        from ray.experimental import internal_kv

        internal_kv._internal_kv_put(note(self.id), b"", namespace=NAMESPACE)
        self._call("PrestartWorkers", pb.PrestartWorkersRequest(num_workers=1, keep_alive_duration_secs=STAYS_S))

    def _idle(self) -> set[int]:
        """Process ids of the workers on which nothing has run yet."""
        import ray
        from ray.core.generated import node_manager_pb2 as pb

        nobody = ray.ActorID.nil().binary()
        workers = self._call("GetNodeStats", pb.GetNodeStatsRequest()).core_workers_stats
        return {worker.pid for worker in workers if worker.actor_id == nobody and not worker.num_executed_tasks}

    def _call(self, method: str, message: Any) -> Any:
        from ray._private.grpc_utils import init_grpc_channel
        from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
        from ray.core.generated.node_manager_pb2_grpc import NodeManagerServiceStub

        with init_grpc_channel(self._address, options=GLOBAL_GRPC_OPTIONS) as channel:
            return getattr(NodeManagerServiceStub(channel), method)(message, timeout=ANSWERS_S)


def note(node_id: str) -> bytes:
    """The key in Ray's own store under which a worker on this node is told that it is to be ready for a replica."""
    return b"standby:" + node_id.encode()


def signature(node_id: str, pid: int | str) -> bytes:
    """The key under which such a worker says that it is."""
    return f"ready:{node_id}:{pid}".encode()


def raylets() -> list[Raylet]:
    """Those of the nodes that have processors for replicas."""
    import ray

    return [Raylet(node) for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
