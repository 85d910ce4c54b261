"""What goes wrong with local clusters, and that nothing is left behind."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tidepool.cluster import environment, local, processes
from tidepool.cluster.ports import Ports
from tidepool.errors import ClusterError, NoCluster, PortInUse
from tidepool.settings import Settings

UP = """
import sys
from pathlib import Path
from tidepool.cluster import local
from tidepool.cluster.ports import Ports
from tidepool.settings import Settings
local.up(Settings(), Ports(int(sys.argv[1]), int(sys.argv[2])), 2, 0, {}, Path.cwd())
"""

FAILING_SERVE = """
import sys
from tidepool.cli.cluster import ensure_up
from tidepool.cluster.ports import Ports
from tidepool.settings import Settings

def start_serving(settings, port, grpc_port):
    raise RuntimeError("no front end today")

ensure_up(Settings(), Ports(int(sys.argv[1]), int(sys.argv[2])), 2, 0, start_serving=start_serving)
"""


@pytest.fixture
def settings(home: Path) -> Iterator[Settings]:
    """An empty home, and nothing of it survives."""
    settings = Settings(home=home)
    yield settings
    local.down(settings)


def free_ports() -> Ports:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return Ports(first.getsockname()[1], second.getsockname()[1])


def up(settings: Settings, ports: Ports | None = None, resources: dict[str, float] | None = None) -> local.LocalCluster:
    return local.up(settings, ports or free_ports(), 2, 0, resources or {}, Path.cwd())


def members(settings: Settings) -> list[psutil.Process]:
    return processes.members(environment.mark(settings))


def wait_until(condition: Callable[[], object], deadline_s: float = 60.0) -> None:
    until = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def assert_nothing_is_left(settings: Settings) -> None:
    assert members(settings) == []
    assert not settings.cluster_file.exists()
    with pytest.raises(NoCluster):
        local.running(settings)


def test_a_taken_port_is_refused_before_anything_is_started(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(PortInUse, match=f"{port}.*process {os.getpid()}.*--http-port"):
            up(settings, Ports(port, free_ports().dashboard))
    assert_nothing_is_left(settings)


def test_a_start_that_ray_refuses_leaves_nothing_and_says_why(settings: Settings) -> None:
    with pytest.raises(ClusterError, match=r"Ray doesn't start.*ray-start.log"):
        up(settings, resources={"CPU": 1})
    assert_nothing_is_left(settings)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pids": 3, "ports": [], "http_port": 1}'])
def test_a_damaged_cluster_file_counts_as_none(settings: Settings, content: str) -> None:
    settings.root.mkdir()
    settings.cluster_file.write_text(content)
    with pytest.raises(NoCluster):
        local.running(settings)
    assert local.down(settings) == 0
    assert not settings.cluster_file.exists()


def test_a_cluster_from_before_a_reboot_is_not_taken_for_running(settings: Settings) -> None:
    settings.root.mkdir()
    pids = {"gcs_server": os.getpid(), "raylet": 1}  # the numbers are given away again
    record = {"id": "x", "address": "", "dashboard": "", "http_port": 1, "started_at": "", "pids": pids, "ports": {}}
    settings.cluster_file.write_text(json.dumps({**record, "environment": {}}))
    with pytest.raises(NoCluster):
        local.running(settings)


def test_while_one_is_at_work_another_is_told_so(settings: Settings) -> None:
    with local.alone(settings, "cluster"):
        for verb in (lambda: up(settings), lambda: local.down(settings)):
            with pytest.raises(ClusterError, match="another `tidepool up` or `down` is at work"):
                verb()


def test_an_address_where_nobody_answers_is_refused_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_ports().http}")
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS 127.0.0.1:.*unset it"), local.connect(settings):
        pass


@pytest.mark.cluster
def test_of_two_starts_at_once_one_wins_and_a_killed_head_is_replaced(settings: Settings) -> None:
    started: list[local.LocalCluster] = []
    winner = threading.Thread(target=lambda: started.append(up(settings)))
    winner.start()
    wait_until(lambda: members(settings))
    with pytest.raises(ClusterError, match="another `tidepool up`"):
        up(settings)
    winner.join()
    (first,) = started

    for pid in first.pids.values():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not processes.are_alive(first.pids.values(), first.id))  # a signal takes its time
    with pytest.raises(NoCluster):
        local.running(settings)
    second = up(settings, Ports(first.http_port, first.ports["dashboard"]))
    assert second.id != first.id
    assert processes.members(first.id) == []
    assert local.running(settings) == second


@pytest.mark.cluster
def test_an_interrupted_start_leaves_nothing(settings: Settings) -> None:
    ports = free_ports()
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # tests in the background don't hear it
    command = [sys.executable, "-c", UP, str(ports.http), str(ports.dashboard)]
    starting = subprocess.Popen(command, preexec_fn=heard)
    wait_until(lambda: any(member.name() == "gcs_server" for member in members(settings)))
    starting.send_signal(signal.SIGINT)
    assert starting.wait(timeout=30) != 0
    assert_nothing_is_left(settings)


@pytest.mark.cluster
def test_a_front_end_that_fails_takes_its_cluster_down(settings: Settings) -> None:
    ports = free_ports()
    command = [sys.executable, "-c", FAILING_SERVE, str(ports.http), str(ports.dashboard)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "no front end today" in done.stderr
    assert_nothing_is_left(settings)
