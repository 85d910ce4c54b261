"""The head node of a local cluster: the `ray start` that begins it, and when it is ready."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tidepool.cluster.ports import Block, Ports
from tidepool.cluster.resources import logical_cpus
from tidepool.errors import ClusterError

START_S = 120.0
"""Longest wait for the head node, in seconds; on a slow disk Python's imports take most of it."""

PROCESSES = ("gcs_server", "raylet")
"""Names of those without which there is no cluster."""


@dataclass(frozen=True)
class Size:
    """What a node claims to have; None leaves it to `resources.logical_cpus` and to Ray's detection."""

    num_cpus: int | None = None
    num_gpus: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)


def command(ports: Ports, block: Block, run: Path, size: Size) -> list[str]:
    """The `ray start` of a head node whose every port is its own and on loopback."""
    options: dict[str, object] = {
        "node-ip-address": "127.0.0.1",
        "port": block["gcs"],
        "ray-client-server-port": block["client"],
        "object-manager-port": block["object_manager"],
        "node-manager-port": block["node_manager"],
        "dashboard-agent-listen-port": block["agent"],
        "dashboard-agent-grpc-port": block["agent_grpc"],
        "runtime-env-agent-port": block["runtime_env"],
        "metrics-export-port": block["metrics"],
        "min-worker-port": 0,  # any free one: Ray's own range is the same for every cluster
        "max-worker-port": 0,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": ports.dashboard,
        "temp-dir": run / "ray",
        "num-cpus": logical_cpus() if size.num_cpus is None else size.num_cpus,
        "resources": json.dumps(dict(size.resources)),
    }
    if size.num_gpus is not None:
        options["num-gpus"] = size.num_gpus
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats", *flags]


def start(command: list[str], variables: Mapping[str, str], logs: Path) -> None:
    """Run `ray start`, whose processes stay; its output goes to a log.

    Raises:
        ClusterError: it fails, with the last line of its output.
    """
    logs.mkdir(parents=True, exist_ok=True)
    path = logs / "ray-start.log"
    with path.open("wb") as log:
        try:
            # A session of its own: Ctrl-C in this terminal, or closing it, must not end the cluster.
            subprocess.run(
                command,
                env=dict(variables),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                timeout=START_S,
                check=True,
            )
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else str(error)
            raise ClusterError("Ray doesn't start", seen=reason, remedy=f"see {path}, and `tidepool doctor`") from error


def await_dashboard(url: str) -> None:
    """Wait until jobs can be submitted.

    Raises:
        ClusterError: they can't within `START_S`.
    """
    until = time.monotonic() + START_S
    while True:
        try:
            get(f"{url}/api/version", timeout_s=5)
            return
        except OSError as error:
            if time.monotonic() > until:
                remedy = "`tidepool up` again, and `tidepool doctor` if that doesn't help"
                raise ClusterError("Ray's dashboard doesn't answer", seen=f"{url}: {error}", remedy=remedy) from error
        time.sleep(0.05)


def get(url: str, timeout_s: float) -> bytes:
    """The body of a successful GET, whatever proxy the environment names.

    Raises:
        OSError: no answer, or one that is no success.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout_s) as response:
        body: bytes = response.read()
    return body
