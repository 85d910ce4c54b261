"""Unix sockets beside the replicas' ports, and HAProxy's configuration that names them."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from tidepool.cluster import haproxy, sockets

pytestmark = pytest.mark.skipif(
    not sockets.BOUND.exists() or int(sockets.BOUND.read_text()) < sockets.BACKLOG,
    reason="this system lets too few connections wait for Unix sockets to be of use",
)

BACKENDS = """global
    tune.bufsize 65536
backend http-digits
    server a 127.0.0.1:1 check observe layer4
    server b 127.0.0.1:2 check
    server c 10.0.0.7:1 check
backend grpc-digits
    server a 127.0.0.1:1 proto h2 check
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Beside HAProxy's control socket in `tmp_path`."""
    return sockets.folder({sockets.CONTROL: str(tmp_path / "admin.sock")})


def servers(tmp_path: Path, backends: str = BACKENDS) -> list[str]:
    """The addresses in the configuration with which HAProxy is started in the end."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(backends)
    script = haproxy.program(tmp_path, Path("/bin/true"))
    variables = {"PATH": os.environ["PATH"], sockets.CONTROL: str(tmp_path / "admin.sock")}
    subprocess.run([script, "-f", file], env=variables, check=True)
    return [line.split()[2] for line in file.read_text().splitlines() if line.startswith("    server")]


def test_haproxy_reaches_replicas_of_its_machine_by_their_sockets_if_they_listen(tmp_path: Path, folder: Path) -> None:
    with sockets.listen(folder, 1), socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(folder / "127.0.0.1:2"))
        path = f"unix@{folder}/127.0.0.1:1"
        assert servers(tmp_path) == [path, "127.0.0.1:2", "10.0.0.7:1", path]


def test_sockets_that_were_left_behind_are_nobodys(tmp_path: Path, folder: Path) -> None:
    sockets.listen(folder, 1).close()
    assert (folder / "127.0.0.1:1").exists()
    assert servers(tmp_path)[0] == "127.0.0.1:1"


def test_a_port_that_is_used_again_gets_a_new_socket(folder: Path) -> None:
    sockets.listen(folder, 1).close()
    with sockets.listen(folder, 1), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "127.0.0.1:1"))


@pytest.mark.parametrize("mode", [0o755, 0o777, 0o710])
def test_a_folder_that_others_may_enter_is_not_used(tmp_path: Path, folder: Path, mode: int) -> None:
    with sockets.listen(folder, 1):
        folder.chmod(mode)
        assert servers(tmp_path)[0] == "127.0.0.1:1"
    with pytest.raises(PermissionError, match="of this user alone"):
        sockets.listen(folder, 1)


def test_serve_calls_the_replicas_of_haproxys_own_machine_as_their_sockets_are_called() -> None:
    from ray.serve._private.haproxy import HAProxyManager
    from ray.serve.schema import Target

    to_server = HAProxyManager.__ray_metadata__.modified_class._target_to_server
    manager = SimpleNamespace(_node_ip_address="10.0.0.5", _generate_server_name=lambda target: target.name)
    about = {"port": 1, "instance_id": "i", "name": "n"}
    targets = [Target(**{**about, "ip": ip}) for ip in ("10.0.0.5", "10.0.0.6")]
    names = [f"{server.host}:{server.port}" for server in (to_server(manager, target) for target in targets)]
    assert names == [f"{sockets.LOCALHOST}:1", "10.0.0.6:1"]


def test_what_may_be_on_the_way_is_set_where_all_replicas_are_on_this_machine(tmp_path: Path, folder: Path) -> None:
    limit = f"tune.sndbuf.server {haproxy.UNSENT}"
    with sockets.listen(folder, 1):
        servers(tmp_path)
        assert limit not in (tmp_path / "haproxy.cfg").read_text()
        servers(tmp_path, BACKENDS.replace("10.0.0.7", sockets.LOCALHOST))
        assert limit in (tmp_path / "haproxy.cfg").read_text()


def test_a_folder_that_is_a_link_is_not_used(tmp_path: Path, folder: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="of this user alone"):
        sockets.listen(folder, 1)
    with sockets.listen(elsewhere, 1):
        assert servers(tmp_path)[0] == "127.0.0.1:1"


def test_without_a_setting_sockets_are_where_serve_has_haproxys() -> None:
    from ray.serve._private import constants

    assert sockets.folder({}) == Path(sockets.CONTROL_DEFAULT).parent / "replicas"
    if sockets.CONTROL not in os.environ:
        assert constants.RAY_SERVE_HAPROXY_SOCKET_PATH == sockets.CONTROL_DEFAULT
