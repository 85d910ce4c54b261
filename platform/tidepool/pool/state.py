"""Who holds what in the pool, as one frozen value: nodes, applications, training runs, reservations.

A snapshot is of one accelerator type ("GPU", "TPU", a custom resource, "CPU" on a laptop); a cluster with two types
has two. Amounts may be fractions, as in Ray. On every node, always:

    processes   what replicas and workers hold                                              <= total
    promises    what replicas hold, workers that stay hold, and reservations will hold      <= total

The first says that nothing is held twice, the second that nothing is promised twice. A worker that was told to leave
holds its accelerator until its process is gone: only then is it free, or vacated for the reservation that awaits it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from tidepool.errors import ClusterError
from tidepool.pool.demand import Demand

EPSILON = 1e-6
"""Amounts that differ by less are equal; Ray itself counts in steps of 0.0001."""

State = Literal["running", "yielding", "starting", "parked"]


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that is there."""

    name: str
    total: float
    """Accelerators that the pool may hand out: the node's own, less what neither serving nor training holds."""
    bought: bool = False
    """Whether the cluster autoscaler added it at the pool's wish."""
    closing: bool = False
    """Whether it is about to go (returned, or a spot machine under notice): nothing is placed on it any more."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine that the cluster autoscaler was asked for and that isn't there yet."""

    name: str
    accelerators: float


@dataclass(frozen=True, slots=True)
class App:
    """What a Serve application has and wants."""

    name: str
    wanted: int
    """Replicas that its traffic needs now, before Serve's own delays."""
    running: Mapping[str, int] = field(default_factory=dict)
    """Replicas by node, those that start up included."""
    pending: int = 0
    """Replicas that Serve has asked for and Ray could not place."""
    per_replica: float = 1.0
    """Accelerators that a replica takes, all on one node."""
    priority: int = 0
    min_replicas: int = 0
    """Its own share; what it holds above is on loan from training."""
    max_replicas: int = 1_000_000
    slo_p99_ms: float = 100.0

    @property
    def replicas(self) -> int:
        """Replicas that hold accelerators."""
        return sum(self.running.values())

    @property
    def asks(self) -> int:
        """Replicas that it should have: the larger of what traffic needs and what Serve waits for, within its share."""
        awaited = self.replicas + self.pending if self.pending else 0
        return min(max(self.wanted, awaited, self.min_replicas), self.max_replicas)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a resize costs a run, as measured. Seconds."""

    shrink_pause_s: float
    """Training stands still while members leave."""
    grow_pause_s: float
    """Training stands still while members join, or until the next segment trains."""
    release_s: float
    """From the notice until the accelerators' processes are gone."""


LIVE = Costs(shrink_pause_s=0.053, grow_pause_s=0.029, release_s=0.7)
"""Members come and go at a step boundary. Measured with gloo on 2 cores; a run's own measurements replace it."""
SEGMENTS = Costs(shrink_pause_s=13.0, grow_pause_s=13.0, release_s=1.3)
"""The whole worker group stops and starts again. Measured on 2 cores."""


@dataclass(frozen=True, slots=True)
class Run:
    """A training run. It has no workers (it is parked), or between `min_workers` and `max_workers`."""

    name: str
    min_workers: int
    max_workers: int
    workers: Mapping[str, int] = field(default_factory=dict)
    """Workers by node, those that are leaving or joining included."""
    leaving: Mapping[str, int] = field(default_factory=dict)
    """Those of them that were told to go and whose process is still there."""
    joining: Mapping[str, int] = field(default_factory=dict)
    """Those of them that don't train yet."""
    parkable: bool = False
    """Whether the pool may take it to zero; else it keeps `min_workers` once it has started."""
    per_worker: float = 1.0
    """Accelerators that a worker takes, all on one node."""
    priority: int = 0
    weight: float = 1.0
    """Its share against runs of the same priority."""
    since: float = 0.0
    """When it was submitted: the older goes first. Seconds since the epoch."""
    costs: Costs = LIVE
    moved: tuple[float, ...] = ()
    """When it was resized, newest last; those of the last ten minutes."""
    remaining_s: float | None = None
    """Seconds that it still needs at its present size, where that is known."""

    size: int = field(init=False, compare=False, repr=False)
    """Workers that stay."""

    def __post_init__(self) -> None:
        size = sum(self.workers.values()) - sum(self.leaving.values())
        object.__setattr__(self, "size", size)  # asked for so often in large pools that it is kept

    @property
    def staying(self) -> dict[str, int]:
        """Workers that stay, by node."""
        return {node: count - self.leaving.get(node, 0) for node, count in self.workers.items()}

    @property
    def guaranteed(self) -> int:
        """Workers that nobody may take from it."""
        return self.min_workers if self.size and not self.parkable else 0

    @property
    def state(self) -> State:
        """What it does now."""
        if self.leaving:
            return "yielding"
        if self.joining:
            return "starting"
        return "running" if self.workers else "parked"


@dataclass(frozen=True, slots=True)
class Reservation:
    """Accelerators of one node, promised to one replica until it holds them or the promise is taken back."""

    id: str
    app: str
    node: str
    accelerators: float
    awaited: float = 0.0
    """Those of them that leaving workers still hold."""


@dataclass(frozen=True)
class Snapshot:
    """The pool of one accelerator type.

    Raises:
        ClusterError: a node's accelerators are held or promised twice, or somebody is on a node that isn't there.
    """

    nodes: tuple[Node, ...]
    apps: tuple[App, ...] = ()
    runs: tuple[Run, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    coming: tuple[Machine, ...] = ()
    demand: Demand = field(default_factory=Demand)
    """What all applications together asked for lately."""
    accelerator: str = "GPU"

    free: Mapping[str, float] = field(init=False, compare=False, repr=False)
    """Accelerators by node that nobody holds and nobody was promised."""
    vacating: Mapping[str, float] = field(init=False, compare=False, repr=False)
    """Accelerators by node that leaving workers hold and nobody was promised."""

    def __post_init__(self) -> None:
        free, vacating = self._books()
        for node in self.nodes:
            if free[node.name] < -EPSILON:
                seen = f"{node.total - free[node.name]:g} held or reserved on {node.name}"
                raise ClusterError(f"a {self.accelerator} is held twice", seen=seen, allowed=f"{node.total:g}")
        for name, amount in vacating.items():
            if amount < -EPSILON:
                seen = f"{-amount:g} more awaited on {name} than leaving workers hold"
                raise ClusterError(f"a {self.accelerator} is promised twice", seen=seen)
        object.__setattr__(self, "free", free)
        object.__setattr__(self, "vacating", vacating)

    @property
    def total(self) -> float:
        """Accelerators of all nodes that stay."""
        return sum(node.total for node in self.nodes if not node.closing)

    @property
    def wanted(self) -> float:
        """Accelerators that all applications ask for, but not for replicas that no node is large enough for."""
        largest = max((node.total for node in self.nodes), default=0.0) + EPSILON
        return sum(app.asks * app.per_replica for app in self.apps if app.per_replica <= largest)

    def run(self, name: str) -> Run:
        """The run of that name.

        Raises:
            ClusterError: there is none.
        """
        return _named(self.runs, name)

    def app(self, name: str) -> App:
        """The application of that name.

        Raises:
            ClusterError: there is none.
        """
        return _named(self.apps, name)

    def reserved(self, app: str) -> int:
        """Replicas of an application that accelerators are reserved for."""
        return sum(1 for reservation in self.reservations if reservation.app == app)

    def _books(self) -> tuple[dict[str, float], dict[str, float]]:
        free = {node.name: node.total for node in self.nodes}
        vacating: dict[str, float] = {}
        try:
            for app in self.apps:
                for node, replicas in app.running.items():
                    free[node] -= replicas * app.per_replica
            for run in self.runs:
                for node, workers in run.workers.items():
                    free[node] -= workers * run.per_worker
                if run.leaving:
                    for node, workers in run.leaving.items():
                        vacating[node] = vacating.get(node, 0.0) + workers * run.per_worker
            for reservation in self.reservations:
                free[reservation.node] -= reservation.accelerators - reservation.awaited
                vacating[reservation.node] = vacating.get(reservation.node, 0.0) - reservation.awaited
        except KeyError as missing:
            known = ", ".join(node.name for node in self.nodes)
            raise ClusterError("no such node in the pool", seen=missing.args[0], allowed=known) from None
        return free, vacating


Named = TypeVar("Named", App, Run)


def _named(things: tuple[Named, ...], name: str) -> Named:
    for thing in things:
        if thing.name == name:
            return thing
    raise ClusterError("not in the pool", seen=name, allowed=", ".join(thing.name for thing in things) or None)
