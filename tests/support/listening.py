"""Who listens where."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

LOOPBACK = ("127.0.0.1", "::ffff:127.0.0.1", "::1")


def listening_elsewhere(processes: Iterable[psutil.Process]) -> list[str]:
    """Address, port and program of all sockets that other machines can reach."""
    return [
        f"{address.ip} {address.port} {title(process)}"
        for process in processes
        for address in _listening(process)
        if address.ip not in LOOPBACK
    ]


def title(process: psutil.Process) -> str:
    """The command line, as the process may have changed it; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def _listening(process: psutil.Process) -> list[psutil._common.addr]:
    try:
        return [one.laddr for one in process.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    except psutil.NoSuchProcess:
        return []
