"""What is known of this home's cluster without starting one."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidepool import storage
from tidepool.cluster import environment, local
from tidepool.cluster.local import LOOPBACK, LocalCluster
from tidepool.cluster.processes import MARKER
from tidepool.errors import ClusterError
from tidepool.settings import Settings


@pytest.fixture
def nobody_elsewhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A shell that names no cluster."""
    for variable in environment.ELSEWHERE:
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


@pytest.fixture
def cluster(home: Path) -> Iterator[LocalCluster]:
    """A process that passes for this home's cluster, with a port that this test holds."""
    settings = Settings()
    id_ = environment.mark(settings) + "1"
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(sleep, env={**os.environ, MARKER: id_}) as process,
    ):
        port = server.getsockname()[1]
        found = LocalCluster(
            id_, f"{LOOPBACK}:{port}", f"http://127.0.0.1:{port}", port, "", {"gcs_server": process.pid}, {}, {}
        )
        storage.write_json(settings.cluster_file, dataclasses.asdict(found))
        yield found
        process.kill()


@pytest.mark.parametrize(
    ("variable", "address"),
    [
        ("RAY_ADDRESS", "192.0.2.1:{own}"),
        ("RAY_ADDRESS", "127.0.0.1:{other}"),
        ("RAY_ADDRESS", "ray://127.0.0.1:{own}"),
        ("RAY_API_SERVER_ADDRESS", "http://localhost:{other}"),
    ],
)
def test_a_shell_that_is_set_to_another_cluster_is_told(
    cluster: LocalCluster, nobody_elsewhere: pytest.MonkeyPatch, variable: str, address: str
) -> None:
    address = address.format(own=cluster.http_port, other=cluster.http_port - 1)
    nobody_elsewhere.setenv(variable, address)
    with pytest.raises(ClusterError, match=f"not here. Seen: {variable} {address}"):
        local.stay_here(Settings(), "not here", "there")


@pytest.mark.parametrize("address", [f"{LOOPBACK}:{{own}}", "127.0.0.1:{own}", "localhost:{own}", "auto", ""])
@pytest.mark.parametrize("dashboard", ["http://127.0.0.1:{own}", "http://localhost:{own}/"])
def test_a_shell_that_is_set_to_this_homes_cluster_is_here(
    cluster: LocalCluster, nobody_elsewhere: pytest.MonkeyPatch, address: str, dashboard: str
) -> None:
    nobody_elsewhere.setenv("RAY_ADDRESS", address.format(own=cluster.http_port))
    nobody_elsewhere.setenv("RAY_API_SERVER_ADDRESS", dashboard.format(own=cluster.http_port))
    local.stay_here(Settings(), "not here", "there")


def test_a_port_that_stays_taken_is_named_with_its_holder(cluster: LocalCluster) -> None:
    with pytest.raises(ClusterError, match=rf"{cluster.http_port} by process {os.getpid()}:"):
        local.down(Settings(), patience_s=0.2)
