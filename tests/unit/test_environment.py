"""What the processes of a local cluster find in their environment."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from tidepool.cluster import environment, haproxy
from tidepool.cluster.ports import Block
from tidepool.cluster.processes import MARKER
from tidepool.errors import ClusterError
from tidepool.settings import Settings

BLOCK = Block(20000)
PROJECT = Path("/project")
ROOT = Path(__file__).parents[2]


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


CONFIG = """global
    tune.bufsize 65536
defaults
    option httplog
    errorfile 503 /elsewhere/500.http
frontend p
    bind :{metrics}
frontend h
    bind *:8000
frontend g
    bind *:8001 proto h2
    acl is_grpc-digits req.hdr(application) -m str digits
    use_backend grpc-digits if is_grpc-digits
    acl is_grpc-gateway req.hdr(application) -m str gateway
    use_backend grpc-gateway if is_grpc-gateway
    default_backend default_grpc_backend
backend http-digits
    option httpchk GET /-/healthz
    server a 127.0.0.1:1 check
    server spare 127.0.0.1:2 check backup
backend http-gateway
    server c 127.0.0.1:3 check
backend grpc-digits
    server a 127.0.0.1:4 proto h2 check
    server spare 127.0.0.1:5 proto h2 check backup
listen stats
  bind *:{stats}
"""
INFERS = """    acl is_grpc-digits req.hdr(application) -m str digits
    use_backend infer-digits if is_grpc-digits { path /inference.GRPCInferenceService/ModelInfer }
    use_backend grpc-digits if is_grpc-digits
    acl is_grpc-gateway req.hdr(application) -m str gateway
    use_backend grpc-gateway if is_grpc-gateway
"""
INFER = """backend infer-digits
    option httpchk GET /-/healthz
    server a 127.0.0.1:1 check
    server spare 127.0.0.1:5 proto h2 no-check track grpc-digits/spare backup
"""


@pytest.fixture
def config(tmp_path: Path) -> str:
    """The configuration with which HAProxy is started in the end."""
    binary = tmp_path / "binary"
    binary.write_text('#!/bin/sh\necho "$@"\n')
    binary.chmod(0o755)
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIG.format(metrics=BLOCK["haproxy_metrics"], stats=BLOCK["haproxy_stats"]))
    script = haproxy.program(tmp_path, binary, BLOCK["haproxy_metrics"], BLOCK["haproxy_stats"])
    arguments = ["-db", "-f", str(file), "-sf", "12"]
    said = subprocess.run([script, *arguments], capture_output=True, text=True, check=True).stdout
    assert said.split() == arguments
    return file.read_text()


def test_haproxy_is_started_with_metrics_and_statistics_on_loopback(config: str) -> None:
    binds = [line.split()[1] for line in config.splitlines() if line.lstrip().startswith("bind")]
    assert binds == [
        f"127.0.0.1:{BLOCK['haproxy_metrics']}", "*:8000", "*:8001", f"127.0.0.1:{BLOCK['haproxy_stats']}"
    ]  # fmt: skip


def test_large_bodies_go_by_large_pipes(config: str) -> None:
    assert f"tune.bufsize 65536\n    tune.pipesize {haproxy.PIPE}\n" in config


def test_haproxy_logs_failures_alone_and_tells_of_them_in_json(config: str) -> None:
    assert "option httplog\n    option dontlog-normal" in config
    page = Path(re.search(r"errorfile 503 (\S+)", config)[1]).read_bytes()  # type: ignore[index]
    head, body = page.split(b"\r\n\r\n")
    assert list(json.loads(body)) == ["error"]
    assert f"content-length: {len(body)}".encode() in head


def test_haproxy_finds_the_model_of_a_call_and_sends_the_others_to_the_gateway(config: str) -> None:
    assert "set-header application %[req.body,bytes(5),protobuf(1)]" in config
    assert "default_backend grpc-gateway" in config


def test_haproxy_passes_calls_to_infer_on_to_the_http_ports_of_a_models_replicas(config: str) -> None:
    assert INFERS in config
    assert config.endswith(INFER)


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


def test_a_folder_that_no_cluster_made_is_left_alone() -> None:
    with tempfile.TemporaryDirectory() as short:
        settings = Settings(home=Path(short))
        work = Path(short) / "run" / "thesis.txt"
        work.parent.mkdir()
        work.write_text("years")
        with pytest.raises(ClusterError, match="isn't a cluster's folder"):
            environment.new_run_folder(settings)
        work.rename(Path(short) / "thesis.txt")
        (environment.new_run_folder(settings) / "session").touch()
        assert not (environment.new_run_folder(settings) / "session").exists()


def test_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDE_A", "before")
    with environment.applied({"TIDE_A": "during", "TIDE_B": "during"}):
        assert (os.environ["TIDE_A"], os.environ["TIDE_B"]) == ("during", "during")
    assert os.environ["TIDE_A"] == "before"
    assert "TIDE_B" not in os.environ


def test_the_cloud_gets_the_same_variables_as_the_laptop() -> None:
    given = cloud_variables()
    assert {name: given.get(name) for name in environment.SERVING} == environment.SERVING


def test_the_image_has_haproxys_start_where_the_cloud_looks_for_it(tmp_path: Path) -> None:
    (line,) = [line for line in (ROOT / "deployments" / "Dockerfile").read_text().splitlines() if "haproxy" in line]
    made, command = re.fullmatch(r"RUN mkdir (\S+) && python (.*) \1", line).groups()  # type: ignore[union-attr]
    assert cloud_variables()["RAY_SERVE_HAPROXY_BINARY_PATH"] == f"{made}/haproxy"
    subprocess.run([sys.executable, *command.split(), tmp_path], check=True)
    assert os.access(tmp_path / "haproxy", os.X_OK)
    assert f"bind 127.0.0.1:{haproxy.METRICS_PORT}" in (tmp_path / "haproxy").read_text()


def cloud_variables() -> dict[str, str]:
    options = yaml.safe_load((ROOT / "cluster.yaml").read_text())["docker"]["run_options"]
    return dict(option.removeprefix("--env ").split("=", 1) for option in options if option.startswith("--env "))
