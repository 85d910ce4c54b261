"""The environment that the processes of a local cluster inherit, and the short-lived folder that they share.

Ray Serve reads most of this once, when it is imported, in every process that deploys or serves: so a driver needs the
same variables as the cluster.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from tidepool.cluster import haproxy, loopback
from tidepool.cluster.ports import Block
from tidepool.cluster.processes import MARKER
from tidepool.errors import ClusterError
from tidepool.settings import Settings

SERVING = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tidepool.serve.shortcut.middlewares",
    "RAY_SERVE_HAPROXY_RETRY_ON": "all-retryable-errors",
    "RAY_SERVE_HAPROXY_RETRIES": "3",
    # HAProxy would write a line about each request for a Python process to count: 60 us of a core for every one.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Four times HAProxy's own: tensors pass in fewer pieces, and what fits is sent again if its replica dies.
    "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(64 << 10),
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1.5",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Ray starts workers at 15, so that the head's processes go first: replicas would wait for every other process.
    "RAY_worker_niceness": "0",
    # One process on every machine is a replica's before there is one: see `serve.standby`.
    "RAY_preload_python_modules": "tidepool.serve.warming",
    "RAY_ROTATION_MAX_BYTES": str(64 << 20),
    "RAY_ROTATION_BACKUP_COUNT": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
}
"""What every node of every cluster has, in the cloud too (see cluster.yaml); the user's own values win."""

LOCAL = {
    # No tokens: nothing listens to other machines, so `ray job submit` and `serve deploy` may work in any shell.
    "RAY_AUTH_MODE": "disabled",
    # With clusters of several machines switched off, Ray keeps 127.0.0.1 as the node's address. Otherwise it takes
    # the machine's outside address instead and listens on every interface, open to whoever can reach it.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    # Nobody takes this machine away on notice; the watcher would be one process more at every start of training.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # Ray's processes rename themselves; without this that overwrites the environment in which `down` finds them.
    "SPT_NOENV": "1",
    loopback.HOOK: f"{loopback.__name__}.{loopback.bind_replicas.__name__}",
}

ELSEWHERE = (
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_DASHBOARD_ADDRESS",
    "RAY_REDIS_ADDRESS",
    "RAY_JOB_CONFIG_JSON_ENV_VAR",
)
"""Variables that point a user's shell at another cluster; they must not reach this one's workers."""

SOCKET_PATH_LIMIT = 107
"""Longest path of a Unix socket on Linux, in bytes: `sun_path` less its final zero (man 7 unix)."""

LONGEST_SOCKET = len("/") + 56 + len("/admin.sock") + len(".1234567.tmp")
"""HAProxy's: a folder named by the 56 digits of the node id, and a temporary name with a process id."""


OURS = ".tidepool"
"""File in a run folder that tells it from one that is the user's."""


def mark(settings: Settings) -> str:
    """What the ids of all clusters of this home begin with."""
    return hashlib.sha256(os.fsencode(settings.root)).hexdigest()[:10] + "-"


def run_folder(settings: Settings) -> Path:
    """Where sockets, session logs and HAProxy's files go: in the home, or in a temporary folder if that is too deep."""
    folder = settings.root / "run"
    if len(os.fsencode(folder)) + LONGEST_SOCKET > SOCKET_PATH_LIMIT:
        return Path(tempfile.gettempdir()) / f"tidepool-{mark(settings).rstrip('-')}"
    return folder


def new_run_folder(settings: Settings) -> Path:
    """The run folder, empty, for its owner alone: HAProxy's control socket in it is open to whoever can reach it.

    Raises:
        ClusterError: it is somebody else's, or holds what no cluster put there; or the temporary folder's path is too
            long as well.
    """
    folder = run_folder(settings)
    if len(os.fsencode(folder)) + LONGEST_SOCKET > SOCKET_PATH_LIMIT:
        raise ClusterError("the path for sockets is too long", seen=folder, remedy="set TMPDIR=/tmp")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / OURS).exists():
        raise ClusterError(f"{folder} isn't a cluster's folder", seen=f"no {OURS} in it", remedy="move it elsewhere")
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(mode=0o700, parents=True)
        (folder / OURS).touch()
    except OSError as error:
        raise ClusterError(f"{folder} can't be made", seen=error.strerror, remedy="remove it as its owner") from error
    return folder


def forget_run_folder(settings: Settings) -> None:
    """Remove the run folder if it is a temporary one; in a home its session logs stay until the next start."""
    folder = run_folder(settings)
    if not folder.is_relative_to(settings.root):
        shutil.rmtree(folder, ignore_errors=True)


def cluster_variables(inherited: Mapping[str, str], block: Block, run: Path, binary: Path | None) -> dict[str, str]:
    """The variables that cluster and drivers share."""
    http, grpc = block.replicas("http"), block.replicas("grpc")
    variables = {name: inherited.get(name, value) for name, value in SERVING.items()} | LOCAL
    variables |= {
        "AUTOSCALER_METRIC_PORT": str(block["autoscaler_metrics"]),
        "DASHBOARD_METRIC_PORT": str(block["dashboard_metrics"]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(block["fallback_http"]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(block["fallback_grpc"]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(http[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(http[1]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(grpc[0]),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(grpc[1]),
    }
    if binary is None:
        return variables | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    return variables | {
        # Its threads take turns with the replicas: as many as cores would only be in their way.
        "RAY_SERVE_HAPROXY_NBTHREAD": inherited.get("RAY_SERVE_HAPROXY_NBTHREAD", str(haproxy.threads())),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(
            haproxy.program(run, binary, block["haproxy_metrics"], block["haproxy_stats"])
        ),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run / "server-state"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(run / "metrics.sock"),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(block["haproxy_metrics"]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(block["haproxy_stats"]),
    }


def process_environment(
    inherited: Mapping[str, str], variables: Mapping[str, str], settings: Settings, cluster_id: str, project: Path
) -> dict[str, str]:
    """All variables of the cluster's first process, from which the others inherit them.

    `project` goes on the import path, so that `deployments.digits.app` can be imported in every worker.
    """
    environment = {name: value for name, value in inherited.items() if name not in ELSEWHERE}
    environment |= variables
    environment |= {
        MARKER: cluster_id,
        "TIDEPOOL_HOME": str(settings.root),
        "PATH": _join(Path(sys.executable).parent, inherited.get("PATH")),  # a job's `python` is this one
        "PYTHONPATH": _join(project, inherited.get("PYTHONPATH")),
    }
    for name in ("registry_url", "storage_url", "jwt_jwks"):
        value = getattr(settings, name)
        if value is not None:
            environment[f"TIDEPOOL_{name.upper()}"] = value
    return environment


def _join(first: Path, rest: str | None) -> str:
    return f"{first}{os.pathsep}{rest}" if rest else str(first)


@contextlib.contextmanager
def applied(variables: Mapping[str, str]) -> Iterator[None]:
    """This process's environment with `variables` in it, inside the `with` block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def default_home() -> Path:
    """The home of whoever sets no TIDEPOOL_HOME: bare Ray commands find its cluster."""
    return Path.home() / ".tidepool"


def address_file() -> Path:
    """Where `ray job submit`, `ray status` and `ray.init()` look for a cluster on this machine."""
    linux = sys.platform.startswith("linux")
    temporary = os.environ.get("RAY_TMPDIR") or (os.environ.get("TMPDIR") if linux else None) or "/tmp"
    return Path(temporary) / "ray" / "ray_current_cluster"
