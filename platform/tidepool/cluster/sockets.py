"""Unix sockets by which HAProxy reaches the replicas of its own machine, for less than TCP's loopback takes.

They lie in one folder, which nobody but its owner may enter: who could put a socket there would be sent requests, with
their keys. The script of `cluster.haproxy` looks for them under the same name.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path

CONTROL = "RAY_SERVE_HAPROXY_SOCKET_PATH"
"""The variable that names HAProxy's control socket, beside which the folder is, and Serve's own value for it."""
CONTROL_DEFAULT = "/tmp/haproxy-serve/admin.sock"
FOLDER = "replicas"
LOCALHOST = "127.0.0.1"
BACKLOG = 2048
"""Connections that may wait to be accepted. One more fails at once, where TCP would try again."""
BOUND = Path("/proc/sys/net/core/somaxconn")
"""The system's own bound on that."""


def folder(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the sockets of this machine's replicas are."""
    return Path(environ.get(CONTROL) or CONTROL_DEFAULT).parent / FOLDER


def listen(folder: Path, port: int) -> socket.socket:
    """A socket for the replica that has this TCP port on this machine. Its name is the address by which Serve's own
    configuration of HAProxy reaches replicas of its machine, wherever these listen.

    Raises:
        OSError: the folder isn't ours alone, or can't be made; the socket can't be; too few connections may wait.
    """
    if int(BOUND.read_text()) < BACKLOG:
        raise OSError(
            f"too few connections may wait. Seen: {BOUND.read_text().strip()}. Allowed: {BACKLOG} in {BOUND}."
        )
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seen = folder.lstat()
    if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid() or seen.st_mode & 0o077:
        raise PermissionError(f"{folder} isn't a folder of this user alone")
    path = folder / f"{LOCALHOST}:{port}"
    path.unlink(missing_ok=True)  # of one that had the port before
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        listening.listen(BACKLOG)
    except OSError:
        listening.close()
        raise
    return listening
