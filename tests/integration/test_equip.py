"""A Ray cluster that was there before: equipped, deployed to with Ray's own command, asked, and left as it was."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tidepool.artifact import open_artifact
from tidepool.cluster import local
from tidepool.cluster.ports import Ports
from tidepool.registry.client import Registry
from tidepool.settings import Settings
from waiting import wait_until

pytestmark = pytest.mark.cluster

PROJECT = Path(__file__).parents[2]
PROGRAMS = Path(sys.executable).parent
TIDEPOOL = [sys.executable, "-c", "from tidepool.cli.main import app; app()"]
ZEROS = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0] * 64}]}
JOB = """
import json, os, ray
ray.init()
print("result: " + json.dumps("platform" in os.environ["PYTHONPATH"].split(":")))
"""


class Found:
    """Ray alone, and a shell on its machine."""

    def __init__(self, cluster: local.LocalCluster, settings: Settings) -> None:
        self.cluster, self.settings = cluster, settings
        self.url = f"http://127.0.0.1:{cluster.http_port}"
        self.variables = {
            "TIDEPOOL_HOME": str(settings.root),
            "RAY_ADDRESS": cluster.address,
            "RAY_API_SERVER_ADDRESS": cluster.dashboard,
            "RAY_DASHBOARD_ADDRESS": cluster.dashboard,
            "PATH": f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}",
        }

    def types(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its successful end."""
        environment = {**os.environ, **self.cluster.environment, **self.variables, **variables}
        done = subprocess.run(words, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def ask(self) -> httpx.Response:
        key = {"x-api-key": self.settings.cli_key_file.read_text()}
        return httpx.post(f"{self.url}/v2/models/digits/infer", json=ZEROS, headers=key, timeout=30)

    def served(self) -> set[str]:
        return {model["name"] for model in httpx.post(f"{self.url}/v2/repository/index").json()}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    settings = Settings(home=tmp_path_factory.mktemp("theirs"))
    cluster = local.up(settings, Ports(_free_port(), _free_port()), 2, 0, {}, PROJECT)
    try:
        yield Found(cluster, settings)
    finally:
        local.down(settings)


@pytest.fixture(scope="module")
def equipped(found: Found) -> Found:
    ports = ["--http-port", str(found.cluster.http_port), "--grpc-port", str(found.cluster.ports["grpc"])]
    found.types(*TIDEPOOL, "cluster", "equip", "--host", "127.0.0.1", *ports)
    return found


def test_rays_own_deploy_puts_a_model_beside_the_gateway(
    equipped: Found, make_artifact: Callable[..., Path], tmp_path: Path
) -> None:
    registry = Registry(equipped.settings.registry, equipped.settings.storage("artifacts"))
    registry.promote("digits", registry.register(open_artifact(str(make_artifact(1)))).version)
    equipped.types("serve", "deploy", "deployments/digits/serve.yaml")
    wait_until(lambda: equipped.ask().status_code == 200)
    assert equipped.ask().json()["outputs"][0]["data"] == [1]
    assert httpx.get(f"{equipped.url}/v2/health/ready").status_code == 200
    assert equipped.served() == {"digits"}
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text("applications: []\n")
    equipped.types("serve", "deploy", str(nothing))
    wait_until(lambda: equipped.served() == set())
    assert httpx.get(f"{equipped.url}/v2").json()["name"] == "tidepool"


def test_it_takes_grpc_and_has_a_pool(equipped: Found) -> None:
    import grpc

    with grpc.insecure_channel(f"127.0.0.1:{equipped.cluster.ports['grpc']}") as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        assert live(b"", timeout=30) == b"\x08\x01"  # field 1, live: true
    equipped.types(*TIDEPOOL, "pool")


def test_down_leaves_a_cluster_that_up_did_not_start(found: Found, tmp_path: Path) -> None:
    said = found.types(*TIDEPOOL, "down", TIDEPOOL_HOME=str(tmp_path))
    assert "no cluster was running" in said.stdout
    assert "isn't this home's cluster" in said.stderr
    assert local.running(found.settings) == found.cluster


def test_the_command_that_is_printed_works_there_as_it_is(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tidepool.cli.follow import follow, submit

    (tmp_path / "job.py").write_text(JOB)
    for name, value in {**found.variables, "TIDEPOOL_HOME": str(tmp_path / "home")}.items():
        monkeypatch.setenv(name, value)
    result: Any = follow(submit(Settings(), tmp_path, ["job.py"]))
    assert result is True
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ ")]
    assert f"result: {json.dumps(result)}" in found.types(*shlex.split(line.removeprefix("$ "))).stdout


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
