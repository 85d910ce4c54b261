"""The life of local clusters: two homes at once, seen from outside and from inside, and what is left at the end."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from listening import listening_elsewhere
from tidepool.cluster import environment, haproxy, local, processes
from tidepool.cluster.ports import Ports, listeners
from tidepool.errors import NoCluster
from tidepool.settings import Settings

pytestmark = pytest.mark.cluster

CLI = "from tidepool.cli import cluster; import typer; app = typer.Typer(); cluster.register(app); app()"

SERVE = """
from tidepool.cli.cluster import ensure_up
from tidepool.cluster.ports import Ports
from tidepool.settings import Settings

def start_serving(settings, port, grpc_port):
    from ray import serve
    from deployments.tide import Tide
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(serve.deployment(ray_actor_options={"num_cpus": 0})(Tide).bind(), name="tide", route_prefix="/tide")

ensure_up(Settings(), Ports(1, 2), start_serving=start_serving)
"""

TIDE = """
import os

class Tide:
    async def __call__(self, request):
        return {name: os.environ.get(name) for name in ("TIDEPOOL_HOME", "RAY_AUTH_MODE", "RAY_ADDRESS")}
"""


@dataclass
class Life:
    """What was seen of a cluster with a Serve application, beside another one, from `up` to `down`."""

    cluster: local.LocalCluster
    again: local.LocalCluster
    other: local.LocalCluster
    exposed: list[str]
    answer: dict[str, Any]
    status: dict[str, Any]
    programs: set[str]
    ray_jobs: subprocess.CompletedProcess[str]
    left: list[psutil.Process]
    other_survived: bool
    ended_again: int


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    person = tmp_path_factory.mktemp("person")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(person))
        patch.setenv("RAY_TMPDIR", str(person))
        patch.setenv("RAY_ADDRESS", "192.0.2.1:1")  # somebody's cluster, which must not matter
        patch.delenv("TIDEPOOL_HOME", raising=False)
        mine, others = Settings(), Settings(home=person / "other")
        try:
            yield _live(patch, mine, others, person)
        finally:
            local.down(mine)
            local.down(others)


def _live(patch: pytest.MonkeyPatch, mine: Settings, others: Settings, project: Path) -> Life:
    (project / "deployments").mkdir()
    (project / "deployments" / "tide.py").write_text(TIDE)
    cluster = local.up(mine, _free_ports(), None, 0, {"slot": 2}, project)
    other = local.up(others, _free_ports(), 2, 0, {}, project)
    again = local.up(mine, _free_ports(), None, 0, {}, project)
    patch.delenv("RAY_ADDRESS")
    patch.setenv("PYTHONPATH", str(project))
    _python(SERVE)
    members = processes.members(cluster.id)
    seen = {
        "exposed": listening_elsewhere(members),
        "answer": json.loads(_get(f"http://127.0.0.1:{cluster.http_port}/tide")),
        "status": json.loads(_python(CLI, "status", "--json")),
        "programs": {member.name() for member in members},
        "ray_jobs": subprocess.run(
            [sys.executable, "-m", "ray.scripts.scripts", "job", "list"], capture_output=True, text=True, timeout=60
        ),
    }
    local.down(mine)
    return Life(
        cluster=cluster,
        again=again,
        other=other,
        **seen,
        left=[member for member in members if _is_alive(member)],
        other_survived=bool(_get(f"{local.running(others).dashboard}/api/version")),
        ended_again=local.down(mine),
    )


def _free_ports() -> Ports:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return Ports(first.getsockname()[1], second.getsockname()[1])


def _python(program: str, *arguments: str) -> str:
    """What a program prints; a driver gets a process of its own, since this one may be connected already."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _get(url: str) -> bytes:
    from tidepool.cluster.head import get

    return get(url, timeout_s=10)


def _is_alive(member: psutil.Process) -> bool:
    """Whether it does anything; a zombie only waits for its parent to read its exit code."""
    try:
        return member.is_running() and member.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_up_again_returns_the_cluster_that_runs(life: Life) -> None:
    assert life.again == life.cluster


def test_nothing_listens_to_other_machines(life: Life) -> None:
    assert life.exposed == []


def test_workers_have_the_home_and_import_from_the_project(life: Life) -> None:
    assert life.answer["TIDEPOOL_HOME"] == str(Settings().root)
    assert life.answer["RAY_AUTH_MODE"] == "disabled"


def test_somebodys_ray_address_does_not_reach_the_workers(life: Life) -> None:
    assert life.answer["RAY_ADDRESS"] is None


def test_haproxy_is_the_front_end_where_there_is_one(life: Life) -> None:
    expected = "HAProxy" if haproxy.binary() else "Python proxy"
    assert life.cluster.front_end == expected
    assert ("haproxy" in life.programs) == (expected == "HAProxy")


def test_status_shows_nodes_resources_and_applications(life: Life) -> None:
    assert life.status["cluster"]["id"] == life.cluster.id
    assert life.status["used"]["slot"] == [0.0, 2.0]
    assert life.status["used"]["CPU"][1] >= 8
    (node,) = life.status["nodes"]
    assert node["alive"]
    (application,) = life.status["applications"]
    assert application["name"] == "tide"
    assert application["route_prefix"] == "/tide"
    assert application["replicas"] == {"Tide": {"RUNNING": 1}}


def test_two_homes_share_no_port_and_no_process(life: Life) -> None:
    assert not set(life.cluster.ports.values()) & set(life.other.ports.values())
    assert not set(life.cluster.pids.values()) & set(life.other.pids.values())
    assert life.cluster.address != life.other.address


def test_rays_own_commands_find_the_default_home(life: Life) -> None:
    assert life.ray_jobs.returncode == 0, life.ray_jobs.stderr


def test_down_leaves_no_process_and_no_listening_port(life: Life) -> None:
    assert life.left == []
    assert not listeners([life.cluster.http_port, *life.cluster.ports.values()])


def test_down_forgets_the_cluster(life: Life) -> None:
    assert life.ended_again == 0
    with pytest.raises(NoCluster, match="tidepool up"):
        local.running(Settings())
    assert not environment.address_file().exists()


def test_the_other_home_does_not_notice(life: Life) -> None:
    assert life.other_survived
