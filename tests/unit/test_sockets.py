"""Unix sockets beside the replicas' ports, and HAProxy's configuration that names them."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tidepool.cluster import haproxy, sockets

BACKENDS = """backend http-digits
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


def servers(tmp_path: Path) -> list[str]:
    """The addresses in the configuration with which HAProxy is started in the end."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(BACKENDS)
    script = haproxy.program(tmp_path, Path("/bin/true"))
    variables = {"PATH": os.environ["PATH"], sockets.CONTROL: str(tmp_path / "admin.sock")}
    subprocess.run([script, "-f", file], env=variables, check=True)
    return [line.split()[2] for line in file.read_text().splitlines() if line.startswith("    server")]


def test_haproxy_reaches_replicas_of_its_machine_by_their_sockets_if_they_listen(tmp_path: Path, folder: Path) -> None:
    with sockets.listen(folder, "127.0.0.1", 1), socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(folder / "127.0.0.1:2"))
        path = f"unix@{folder}/127.0.0.1:1"
        assert servers(tmp_path) == [path, "127.0.0.1:2", "10.0.0.7:1", path]


def test_sockets_that_were_left_behind_are_nobodys(tmp_path: Path, folder: Path) -> None:
    sockets.listen(folder, "127.0.0.1", 1).close()
    assert (folder / "127.0.0.1:1").exists()
    assert servers(tmp_path)[0] == "127.0.0.1:1"


def test_a_port_that_is_used_again_gets_a_new_socket(folder: Path) -> None:
    sockets.listen(folder, "127.0.0.1", 1).close()
    with sockets.listen(folder, "127.0.0.1", 1), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "127.0.0.1:1"))


def test_a_folder_that_others_may_enter_is_not_used(folder: Path) -> None:
    folder.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="of this user alone"):
        sockets.listen(folder, "127.0.0.1", 1)


def test_a_folder_that_is_a_link_is_not_used(tmp_path: Path, folder: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    folder.symlink_to(elsewhere)
    with pytest.raises(PermissionError, match="of this user alone"):
        sockets.listen(folder, "127.0.0.1", 1)
    with sockets.listen(elsewhere, "127.0.0.1", 1):
        assert servers(tmp_path)[0] == "127.0.0.1:1"


def test_without_a_setting_sockets_are_where_serve_has_haproxys() -> None:
    from ray.serve._private import constants

    assert sockets.folder({}) == Path(sockets.CONTROL_DEFAULT).parent / "replicas"
    if sockets.CONTROL not in os.environ:
        assert constants.RAY_SERVE_HAPROXY_SOCKET_PATH == sockets.CONTROL_DEFAULT
