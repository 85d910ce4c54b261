"""What the processes of a local cluster find in their environment."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tidepool.cluster import environment, haproxy
from tidepool.cluster.ports import Block
from tidepool.cluster.processes import MARKER
from tidepool.settings import Settings

BLOCK = Block(20000)
PROJECT = Path("/project")


def everything(inherited: dict[str, str], settings: Settings, run: Path) -> dict[str, str]:
    variables = environment.cluster_variables(inherited, BLOCK, run, Path("/opt/haproxy"))
    return environment.process_environment(inherited, variables, settings, "home-1", PROJECT)


def test_workers_know_their_cluster_their_home_and_the_project(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", storage_url="s3://bucket")
    found = everything({"PATH": "/bin", "PYTHONPATH": "/mine", "HOME": "/home/ann"}, settings, tmp_path)
    assert found[MARKER] == "home-1"
    assert found["TIDEPOOL_HOME"] == str(tmp_path / "home")
    assert found["TIDEPOOL_STORAGE_URL"] == "s3://bucket"
    assert found["PYTHONPATH"].split(os.pathsep) == ["/project", "/mine"]
    assert found["PATH"].split(os.pathsep) == [str(Path(sys.executable).parent), "/bin"]
    assert found["HOME"] == "/home/ann"


def test_another_clusters_address_does_not_reach_the_workers(tmp_path: Path) -> None:
    found = everything({"RAY_ADDRESS": "1.2.3.4:6379", "RAY_API_SERVER_ADDRESS": "http://x"}, Settings(), tmp_path)
    assert not {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} & set(found)


def test_the_users_own_tuning_wins_but_not_over_the_loopback(tmp_path: Path) -> None:
    inherited = {"RAY_SERVE_HAPROXY_RETRIES": "7", "RAY_AUTH_MODE": "token"}
    found = environment.cluster_variables(inherited, BLOCK, tmp_path, Path("/opt/haproxy"))
    assert found["RAY_SERVE_HAPROXY_RETRIES"] == "7"
    assert found["RAY_AUTH_MODE"] == "disabled"


def test_without_haproxy_serve_uses_its_own_proxy(tmp_path: Path) -> None:
    found = environment.cluster_variables({}, BLOCK, tmp_path, None)
    assert found["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
    assert not any(name.startswith("RAY_SERVE_HAPROXY_SOCKET") for name in found)


def test_two_clusters_share_no_port(tmp_path: Path) -> None:
    first, second = (
        environment.cluster_variables({}, block, tmp_path, Path("/opt/haproxy")) for block in (BLOCK, Block(20500))
    )
    ports = [name for name in first if name.endswith(("_PORT", "METRIC_PORT"))]
    assert len(ports) >= 8
    assert all(first[name] != second[name] for name in ports)


def test_haproxy_is_started_with_metrics_and_statistics_on_loopback(tmp_path: Path) -> None:
    binary = tmp_path / "binary"
    binary.write_text('#!/bin/sh\necho "$@"\n')
    binary.chmod(0o755)
    config = tmp_path / "haproxy.cfg"
    metrics, stats = BLOCK["haproxy_metrics"], BLOCK["haproxy_stats"]
    config.write_text(f"frontend p\n    bind :{metrics}\nfrontend h\n    bind *:8000\nlisten stats\n  bind *:{stats}\n")
    script = haproxy.program(tmp_path, binary, BLOCK)
    arguments = ["-db", "-f", str(config), "-sf", "12"]
    said = subprocess.run([script, *arguments], capture_output=True, text=True, check=True).stdout
    assert said.split() == arguments
    binds = [line.split()[1] for line in config.read_text().splitlines() if "bind" in line]
    assert binds == [f"127.0.0.1:{metrics}", "*:8000", f"127.0.0.1:{stats}"]


def test_sockets_go_into_the_home() -> None:
    assert environment.run_folder(Settings(home=Path("/home/ann/.tidepool"))) == Path("/home/ann/.tidepool/run")


def test_a_home_too_deep_for_sockets_gets_a_temporary_folder_of_its_own(tmp_path: Path) -> None:
    deep = [Settings(home=tmp_path / (letter * 60)) for letter in "ab"]
    folders = [environment.new_run_folder(settings) for settings in deep]
    try:
        assert folders[0] != folders[1]
        assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders)
        assert all(len(str(folder)) + environment.LONGEST_SOCKET <= environment.SOCKET_PATH_LIMIT for folder in folders)
    finally:
        for settings in deep:
            environment.forget_run_folder(settings)
    assert not any(folder.exists() for folder in folders)


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_A", "before")
    with environment.applied({"TIDE_A": "during", "TIDE_B": "during"}):
        assert (os.environ["TIDE_A"], os.environ["TIDE_B"]) == ("during", "during")
    assert os.environ["TIDE_A"] == "before"
    assert "TIDE_B" not in os.environ


def test_the_cloud_gets_the_same_variables_as_the_laptop() -> None:
    root = Path(__file__).parents[2]
    options = yaml.safe_load((root / "cluster.yaml").read_text())["docker"]["run_options"]
    given = dict(option.removeprefix("--env ").split("=", 1) for option in options if option.startswith("--env "))
    assert {name: given.get(name) for name in environment.SERVING} == environment.SERVING
