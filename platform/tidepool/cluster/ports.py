"""Ports of a local cluster: the two that people type, and a block of others that no second cluster has.

Ray, Serve and HAProxy listen on more than a dozen ports, and with direct ingress on one for each replica. Left to
their defaults, two clusters on one machine collide; so each cluster claims one block of consecutive ports, below
the range from which Linux takes the ports of outgoing connections.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from tidepool.errors import ClusterError, PortInUse

BLOCKS = range(20000, 32500, 500)
"""First port of every block."""

SINGLE = (
    "gcs",
    "client",
    "object_manager",
    "node_manager",
    "agent",
    "agent_grpc",
    "runtime_env",
    "metrics",
    "autoscaler_metrics",
    "dashboard_metrics",
    "haproxy_metrics",
    "haproxy_stats",
    "fallback_http",
    "fallback_grpc",
    "grpc",
)
"""What listens on the first ports of a block, in this order."""

REPLICAS = {"http": (20, 420), "grpc": (420, 500)}
"""Offsets in a block of the ports that replicas bind; a freed one rests for 150 s, so there are many."""


@dataclass(frozen=True)
class Ports:
    """The ports that people type."""

    http: int = 8000
    dashboard: int = 8265
    grpc: int | None = None
    """None for the one after the HTTP port if that is free, else one of the block."""

    def check(self) -> None:
        """Make sure that all can be bound, before anything is started.

        Raises:
            PortInUse: one is taken; names it, its holder where that can be seen, and the flag to choose another.
            ClusterError: two are the same, or one is out of bounds or reserved.
        """
        if self.http == self.dashboard:
            raise ClusterError("HTTP and dashboard need a port each", seen=self.http, remedy="give --dashboard-port")
        if self.grpc in (self.http, self.dashboard):
            raise ClusterError("gRPC needs a port of its own", seen=self.grpc, remedy="give another --grpc-port")
        typed = {"--http-port": self.http, "--dashboard-port": self.dashboard, "--grpc-port": self.grpc}
        for flag, port in typed.items():
            if port is None:
                continue
            if not 1 <= port <= 65535:
                raise ClusterError(f"no such port for {flag}", seen=port, allowed="1 to 65535")
            try:
                _bind(port)
            except PermissionError:
                raise ClusterError(f"port {port} is for the system's own services", remedy=f"give {flag}") from None
            except OSError:
                raise PortInUse(
                    f"port {port} is in use", seen=holder(port), remedy=f"end that process, or choose with {flag}"
                ) from None

    def for_grpc(self, block: Block) -> int:
        """The port for gRPC."""
        if self.grpc is not None:
            return self.grpc
        following = self.http + 1
        return following if following != self.dashboard and is_free(following) else block["grpc"]


@dataclass(frozen=True)
class Block:
    """The ports that one cluster has to itself."""

    first: int

    def __getitem__(self, name: str) -> int:
        return self.first + SINGLE.index(name)

    def replicas(self, protocol: str) -> tuple[int, int]:
        """First and one past the last port for replicas; `protocol` is "http" or "grpc"."""
        low, high = REPLICAS[protocol]
        return self.first + low, self.first + high

    def singles(self) -> dict[str, int]:
        """Every port but the replicas', by name."""
        return {name: self[name] for name in SINGLE}

    def __contains__(self, port: int) -> bool:
        return self.first <= port < self.first + BLOCKS.step


@contextlib.contextmanager
def claim(typed: Ports, locks: Path | None = None) -> Iterator[Block]:
    """A block in which every port is free, and which nobody else claims while the `with` block runs.

    `locks` is the folder of the lock; default the temporary one, which all homes of a user share.

    Raises:
        ClusterError: no block is free, or the lock is somebody else's.
    """
    path = (locks or Path(tempfile.gettempdir())) / f"tidepool-{os.getuid()}.lock"
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)  # not through a link of somebody else's
    except OSError as error:
        seen, remedy = f"{path}: {error.strerror}", "have its owner remove it, or set TMPDIR to a folder of your own"
        raise ClusterError("the lock for ports can't be opened", seen=seen, remedy=remedy) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for block in map(Block, BLOCKS):
            ports = range(block.first, block.first + BLOCKS.step)
            if typed.http not in block and typed.dashboard not in block and all(map(is_free, ports)):
                yield block
                return
    finally:
        os.close(lock)
    raise ClusterError(
        f"no {BLOCKS.step} consecutive ports are free",
        allowed=f"{BLOCKS.start} to {BLOCKS.stop}",
        remedy="end another cluster: TIDEPOOL_HOME=<its home> tidepool down",
    )


def is_free(port: int) -> bool:
    """Whether a server could listen on `port`."""
    try:
        _bind(port)
    except OSError:
        return False
    return True


def _bind(port: int) -> None:
    """Bind as servers do, on loopback and on every interface: a listener on either is in the way."""
    for host in ("127.0.0.1", "0.0.0.0"):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a closed connection looks like a server
            probe.bind((host, port))


def holder(port: int) -> str:
    """Who listens on `port`, as far as this user may see."""
    return listeners([port]).get(port, "a process of another user")


def listeners(ports: Collection[int]) -> dict[int, str]:
    """Those of the ports that somebody listens on, and who it is. A client's end of a connection is no listener,
    although no server can listen there until it is closed.
    """
    import psutil

    found = {}
    for connection in psutil.net_connections("tcp"):
        _, port = connection.laddr or ("", 0)
        if port in ports and connection.status == psutil.CONN_LISTEN:
            found[port] = _described(connection.pid)
    return found


def _described(pid: int | None) -> str:
    import psutil

    with contextlib.suppress(psutil.Error):
        if pid:
            process = psutil.Process(pid)
            return f"process {pid}: {' '.join(process.cmdline())[:100] or process.name()}"
    return "a process of another user"
