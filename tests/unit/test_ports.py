"""Ports that people type, and the blocks that clusters claim."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tidepool.cluster.ports import BLOCKS, SINGLE, Block, Ports, claim, holder, is_free, listeners
from tidepool.errors import ClusterError, PortInUse


@pytest.fixture
def taken() -> Iterator[int]:
    """A port on which this process listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_free_ports_pass() -> None:
    Ports(free_port(), free_port()).check()


def test_a_taken_port_is_refused_with_its_holder_and_the_flag_to_choose_another(taken: int) -> None:
    with pytest.raises(PortInUse, match=rf"port {taken} is in use.*process {os.getpid()}.*--http-port"):
        Ports(taken, free_port()).check()
    with pytest.raises(PortInUse, match="--dashboard-port"):
        Ports(free_port(), taken).check()


def test_a_port_can_not_serve_two_masters() -> None:
    with pytest.raises(ClusterError, match="a port each"):
        Ports(8000, 8000).check()


@pytest.mark.parametrize("port", [0, 65536, -1])
def test_a_number_that_is_no_port_is_refused(port: int) -> None:
    with pytest.raises(ClusterError, match="1 to 65535"):
        Ports(port, 8265).check()


def test_a_closed_connection_does_not_make_a_port_look_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            accepted, _ = server.accept()
            accepted.close()  # the side that closes first keeps the port in TIME_WAIT
    assert is_free(port)


def test_a_listener_on_every_interface_is_seen() -> None:
    with socket.create_server(("", 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_a_clients_end_of_a_connection_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            mine = client.getsockname()[1]
            assert not is_free(mine)
            assert list(listeners([port, mine])) == [port]


def test_a_holder_that_can_not_be_seen_is_said_to_be_another_users() -> None:
    assert holder(free_port()) == "a process of another user"


def test_blocks_do_not_overlap_and_stay_below_the_ports_of_outgoing_connections() -> None:
    block = Block(BLOCKS[0])
    ranges = [block.replicas(protocol) for protocol in ("http", "grpc")]
    used = [*block.singles().values(), *(port for low, high in ranges for port in range(low, high))]
    assert len(set(used)) == len(used) > len(SINGLE)
    assert all(port in block and port not in Block(BLOCKS[1]) for port in used)
    assert BLOCKS[-1] + BLOCKS.step <= 32768


def test_a_block_with_a_taken_port_is_passed_over() -> None:
    with claim(Ports()) as block, socket.create_server(("127.0.0.1", block["agent"])):
        pass
    with socket.create_server(("127.0.0.1", block["agent"])), claim(Ports()) as other:
        assert block["agent"] not in other


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_lock_that_is_not_ours_is_explained(tmp_path: Path, kind: str) -> None:
    lock, other = tmp_path / f"tidepool-{os.getuid()}.lock", tmp_path / "other"
    other.write_text("precious")
    lock.mkdir() if kind == "folder" else lock.symlink_to(other)
    with pytest.raises(ClusterError, match=r"tidepool-\d+\.lock.*TMPDIR"), claim(Ports(), tmp_path):
        pass
    assert other.read_text() == "precious"


def test_a_block_leaves_the_typed_ports_alone() -> None:
    with claim(Ports()) as block:
        first = block.first
    with claim(Ports(http=first + 3)) as block:
        assert first + 3 not in block
