"""Who listens where."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1", "::1")


def listening_elsewhere(processes: Iterable[psutil.Process]) -> list[str]:
    """Address, port and program of all sockets that other machines can reach."""
    return [
        f"{connection.laddr.ip} {connection.laddr.port} {process.name()}"
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN and connection.laddr.ip not in LOOPBACK
    ]
