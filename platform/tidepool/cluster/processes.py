"""The processes of a local cluster: how they are recognised and ended.

`up` gives the first process an environment variable that all others inherit, also those that Ray forgets: HAProxy
outlives `ray stop`, and a job may leave programs of its own behind.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from tidepool.errors import ClusterError

if TYPE_CHECKING:
    import psutil

MARKER = "TIDEPOOL_CLUSTER"
"""Environment variable with the cluster's id, which begins with a mark of its home."""


def members(mark: str) -> list[psutil.Process]:
    """Processes whose marker begins with `mark`, and all their descendants; the deepest first. "" means any cluster.

    The caller and its ancestors are left out: `tidepool down` may itself run inside a job.
    """
    import psutil

    children: dict[int, list[psutil.Process]] = defaultdict(list)
    marked = []
    for process in psutil.process_iter(["ppid"]):
        children[process.info["ppid"]].append(process)
        if (found_marker := marker(process)) and found_marker.startswith(mark):
            marked.append(process)
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    depths: dict[psutil.Process, int] = {}
    found = [(process, 0) for process in marked]
    while found:
        process, depth = found.pop()
        if process.pid not in own and depth >= depths.get(process, 0):
            depths[process] = depth
            found += [(child, depth + 1) for child in children[process.pid]]
    return sorted(depths, key=lambda process: -depths[process])


def marker(process: psutil.Process) -> str:
    """The id of the cluster that `process` belongs to; empty for none, and where this user may not look."""
    return variable(process, MARKER)


def variable(process: psutil.Process, name: str) -> str:
    """An environment variable that `process` was started with; empty for none, and where this user may not look."""
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        return process.environ().get(name, "")
    return ""


def are_alive(pids: Iterable[int], cluster_id: str) -> bool:
    """Whether all of `pids` are processes of that cluster, and not newcomers that were given the same numbers."""
    import psutil

    try:
        return all(marker(psutil.Process(pid)) == cluster_id for pid in pids)
    except psutil.NoSuchProcess:
        return False


def end(mark: str, grace_s: float = 2.0, deadline_s: float = 15.0) -> int:
    """End every process whose marker begins with `mark`, and wait until all are gone; returns how many there were.

    They are asked first, the deepest first, and killed after `grace_s`.

    Raises:
        ClusterError: some are still there after `deadline_s`.
    """
    import psutil

    until = time.monotonic() + deadline_s
    ended: set[int] = set()
    while found := members(mark):
        if time.monotonic() > until:
            pids = ", ".join(str(process.pid) for process in found)
            raise ClusterError("some processes can't be ended", seen=pids, remedy="end them as their owner: kill -9")
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill() if ended else process.terminate()
        psutil.wait_procs(found, timeout=0.5 if ended else grace_s)
        ended |= {process.pid for process in found}
    return len(ended)


def pids(mark: str, names: Iterable[str]) -> dict[str, int]:
    """Process id of the members with these program names."""
    import psutil

    found = {}
    for process in members(mark):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() in names:
                found[process.name()] = process.pid
    return found
