"""A Ray cluster on this machine: `up` starts one for a home, `down` ends it, `connect` makes a process its driver.

Everything listens on loopback alone. `cluster.json` in the home says what runs; every process carries a marker (see
`processes`), so that none is lost if that file is, and nothing else is ever ended.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tidepool import storage
from tidepool.cluster import environment, haproxy, head, processes
from tidepool.cluster.ports import Block, Ports, claim, listeners
from tidepool.errors import ClusterError, NoCluster
from tidepool.settings import Settings

FREE_S = 20.0
"""The system takes back the ports of processes that have ended within so long."""
LOOPBACK = "[::ffff:127.0.0.1]" if sys.platform.startswith("linux") else "127.0.0.1"
"""127.0.0.1, written so that Ray's clients leave it alone: they turn 127.0.0.1 and localhost into the machine's
outside address, where nothing listens."""


@dataclass(frozen=True)
class LocalCluster:
    """A cluster that `up` started, as cluster.json describes it."""

    id: str
    address: str
    """host:port of Ray's control service, for `ray.init` and RAY_ADDRESS."""
    dashboard: str
    """URL of the dashboard, for jobs and RAY_API_SERVER_ADDRESS."""
    http_port: int
    """Port on loopback for inference requests."""
    started_at: str
    """ISO 8601, UTC."""
    pids: dict[str, int]
    """Processes without which there is no cluster."""
    ports: dict[str, int]
    """What else listens, apart from replicas."""
    environment: dict[str, str]
    """Variables that drivers share with the cluster."""

    @property
    def front_end(self) -> str:
        """What takes the requests: "HAProxy", or Serve's own "Python proxy" where HAProxy isn't to be had."""
        return "HAProxy" if self.environment["RAY_SERVE_ENABLE_HA_PROXY"] == "1" else "Python proxy"


def up(
    settings: Settings,
    ports: Ports,
    num_cpus: int | None,
    num_gpus: int | None,
    resources: Mapping[str, float],
    project: Path,
) -> LocalCluster:
    """Start a cluster for this home and return it; if one runs already, return that.

    `num_cpus` None means `resources.logical_cpus()`, `num_gpus` None what the machine has. `project` is the folder from
    which workers import `deployments`. Takes about 9 s on two cores; Serve is not started.

    Raises:
        PortInUse: before anything was started.
        ClusterError: Ray doesn't start, or another `up` or `down` of this home is at work. Nothing is left behind.
    """
    size = head.Size(num_cpus, num_gpus, resources)
    with alone(settings, "cluster"):
        with contextlib.suppress(NoCluster):
            return running(settings)
        _clear(settings)
        ports.check()
        with claim(ports) as block:
            try:
                return _start(settings, ports, block, size, project)
            except BaseException:
                _clear(settings)
                raise


def down(settings: Settings, patience_s: float = FREE_S) -> int:
    """End every process of this home's cluster; returns how many there were, 0 if none ran. Takes 2 to 3 s.

    Raises:
        ClusterError: a process can't be ended, somebody listens on its ports for longer than `patience_s`, or another
            `up` or `down` of this home is at work.
    """
    with alone(settings, "cluster"):
        return _clear(settings, patience_s)


def running(settings: Settings) -> LocalCluster:
    """The cluster that runs for this home.

    Raises:
        NoCluster: none does.
    """
    try:
        cluster = LocalCluster(**json.loads(settings.cluster_file.read_bytes()))
    except (OSError, ValueError, TypeError):
        cluster = None  # no file, or not one of this version's
    if cluster is None or not processes.are_alive(cluster.pids.values(), cluster.id):
        raise NoCluster("no cluster is running here", seen=f"TIDEPOOL_HOME {settings.root}", remedy="`tidepool up`")
    return cluster


@contextlib.contextmanager
def connect(settings: Settings) -> Iterator[None]:
    """Make this process a driver inside the `with` block: of the cluster at RAY_ADDRESS if set, else of the local one.

    A process that is connected already, such as a job's, stays as it is. Enter the block before importing `ray.serve`:
    Serve reads its environment on import.

    Raises:
        NoCluster: RAY_ADDRESS isn't set and no local cluster runs.
        ClusterError: nothing answers at RAY_ADDRESS.
    """
    if elsewhere := os.environ.get("RAY_ADDRESS"):
        address, variables = _answering(elsewhere), {}
    else:
        address, variables = running(settings).address, running(settings).environment
    with environment.applied(variables):
        import ray

        if ray.is_initialized():
            yield
            return
        # A filter keeps Serve's progress off the terminal; a level wouldn't last, since importing Serve sets its own.
        logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ClusterError(
                "the cluster doesn't answer", seen=f"{address}: {error}", remedy="`tidepool doctor`, or set RAY_ADDRESS"
            ) from error
        try:
            yield
        finally:
            ray.shutdown()


def dashboard_address(settings: Settings) -> str:
    """Where jobs are submitted: RAY_API_SERVER_ADDRESS or RAY_ADDRESS if set, else the local cluster's dashboard.

    Raises:
        NoCluster: neither is set and no local cluster runs.
    """
    elsewhere = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    return elsewhere or running(settings).dashboard


def stay_here(settings: Settings, what: str, remedy: str) -> None:
    """Make sure that this shell isn't set to another cluster, for commands that know this home's alone.

    "auto", Ray's word for the cluster on this machine, passes.

    Raises:
        ClusterError: RAY_ADDRESS or RAY_API_SERVER_ADDRESS names another; with `what` and `remedy`.
    """
    if (other := elsewhere(settings)) and other[1] != "auto":
        raise ClusterError(what, seen=" ".join(other), remedy=remedy)


def elsewhere(settings: Settings) -> tuple[str, str] | None:
    """The variable that sets this shell to another cluster than the one that runs for this home, and its value."""
    own = {""}
    with contextlib.suppress(NoCluster):
        cluster = running(settings)
        own |= {"auto", cluster.address, cluster.dashboard}
    for variable in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        address = os.environ.get(variable, "")
        if _on_loopback(address.rstrip("/")) not in own:
            return variable, address
    return None


def _on_loopback(address: str) -> str:
    """`host:port` or an URL on this machine, as cluster.json writes it; others as they are."""
    scheme, separator, host = address.replace("localhost:", "127.0.0.1:").rpartition("//")
    if not separator and host.startswith("127.0.0.1:"):
        host = host.replace("127.0.0.1", LOOPBACK)
    return scheme + separator + host


def _start(settings: Settings, ports: Ports, block: Block, size: head.Size, project: Path) -> LocalCluster:
    run = environment.new_run_folder(settings)
    cluster_id = environment.mark(settings) + secrets.token_hex(4)
    variables = environment.cluster_variables(os.environ, block, run, haproxy.binary())
    everything = environment.process_environment(os.environ, variables, settings, cluster_id, project)
    head.start(head.command(ports, block, run, size), everything, settings.logs)
    cluster = LocalCluster(
        id=cluster_id,
        address=f"{LOOPBACK}:{block['gcs']}",
        dashboard=f"http://127.0.0.1:{ports.dashboard}",
        http_port=ports.http,
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        pids=processes.pids(cluster_id, head.PROCESSES),
        ports={**block.singles(), "dashboard": ports.dashboard, "grpc": ports.for_grpc(block)},
        environment=variables,
    )
    head.await_dashboard(cluster.dashboard)
    storage.write_json(settings.cluster_file, dataclasses.asdict(cluster))
    if settings.root == environment.default_home():
        with contextlib.suppress(OSError):  # that file may be another user's; the default home works without it too
            environment.address_file().parent.mkdir(parents=True, exist_ok=True)
            environment.address_file().write_text(cluster.address)
    return cluster


def _clear(settings: Settings, patience_s: float = FREE_S) -> int:
    """End what is left of this home's cluster, and forget it."""
    ended = processes.end(environment.mark(settings))
    environment.forget_run_folder(settings)
    try:
        cluster = json.loads(settings.cluster_file.read_bytes())
        ports, address = [cluster["http_port"], *cluster["ports"].values()], cluster["address"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ports, address = [], None
    settings.cluster_file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if environment.address_file().read_text() == address:
            environment.address_file().unlink()
    until = time.monotonic() + patience_s
    while ended and (taken := listeners(ports)):
        if time.monotonic() < until:
            time.sleep(0.1)
            continue
        seen = ", ".join(f"{port} by {who}" for port, who in taken.items())
        raise ClusterError("ports are still in use", seen=seen, remedy="end those processes")
    return ended


@contextlib.contextmanager
def alone(settings: Settings, name: str) -> Iterator[None]:
    """Hold one of this home's locks inside the `with` block, so that one `up` or `down` is at work at a time.

    Raises:
        ClusterError: another process holds it.
    """
    path = settings.root / f"{name}.lock"
    with storage.explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            what = "another `tidepool up` or `down` is at work"
            raise ClusterError(what, seen=settings.root, remedy="try again when it is done") from None
        yield


def _answering(address: str) -> str:
    """`address`, once something listens there: Ray itself would go on trying for minutes.

    Raises:
        ClusterError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit() or "//" in host:
        return address  # "auto", or something that Ray has a better message for
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError as error:
        seen, remedy = f"RAY_ADDRESS {address}: {error}", "correct RAY_ADDRESS, or unset it for the local cluster"
        raise ClusterError("the cluster doesn't answer", seen=seen, remedy=remedy) from error
    return _on_loopback(address)
