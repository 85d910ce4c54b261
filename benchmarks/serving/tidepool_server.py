"""tidepool as a contestant: one replica behind HAProxy, with its API keys, on a cluster of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import workloads
from environments import Absent
from servers import Server, free_port
from workloads import Message, Row, Workload

from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, new_artifact, open_artifact
from tidepool.cluster import environment, processes, sockets
from tidepool.recipe import load_recipe
from tidepool.registry.client import Registry
from tidepool.settings import Settings

HERE = Path(__file__).parent
NAME = "network"
PATIENCE_S = 60.0
LOOK_S = 0.2
"""Between two looks at the replicas: each goes through all processes of the machine."""
SOME = 3
"""Sockets that a replica has open if nobody asks: one to listen, and one for the front end's own checks."""
COMMAND = (str(Path(sys.executable).with_name("tidepool")),)


@dataclass(frozen=True)
class Cluster:
    """A running tidepool with nothing in service."""

    home: Path
    port: int
    mark: str

    def server(self, workload: Workload, name: str = NAME) -> Server:
        """What a deployed model is asked, with the CLI's key."""
        key = (self.home / "cli.key").read_text()
        plain = workloads.protocol_binary(workload) if workload.binary else workloads.protocol_json(workload)
        message = Message(plain.body, {**plain.headers, "authorization": f"Bearer {key}"})
        return Server(self.port, f"/v2/models/{name}/infer", message, self.mark)

    def register(
        self,
        workload: Workload,
        name: str = NAME,
        write: Callable[[Path], None] | None = None,
        weights: bytes = b"",
        **serve: Any,
    ) -> Row:
        """Register the workload's network, or what `write` writes, as the next version; returns what it is expected
        to answer. `weights`: for torch, a safetensors file. `serve` is its spec's section of that name.
        """
        recipe = f"recipes:{workload.recipe}"
        served = {"num_replicas": 1, "num_cpus": 1, **serve}
        spec = {"name": name, "recipe": recipe, "data": {"source": "none"}, "serve": served}
        make = partial(new_artifact, name=name, recipe_path=recipe, params={}, preprocessing_state={}, metrics={})
        uri = tempfile.mkdtemp(dir=self.home) + "/artifact"
        with make(uri, signature=load_recipe(recipe).signature, lineage={"spec": spec}) as building:
            (write or workload.write)(building / ONNX)
            (building / WEIGHTS).write_bytes(weights)
            (building / GOLDEN).write_bytes(b"")
            expected = workload.expected(building / ONNX)
        self.registry.register(open_artifact(uri))
        return expected

    def replicas(self, name: str) -> list[psutil.Process]:
        """The processes that serve a model."""
        found = []
        for process in processes.members(self.mark):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                if f"ServeReplica:{name}:" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def await_replicas(self, name: str, is_so: Callable[[list[psutil.Process]], bool]) -> None:
        """Wait until `is_so` of a model's replicas.

        Raises:
            Absent: it isn't for very long.
        """
        until = time.monotonic() + PATIENCE_S
        while not is_so(seen := self.replicas(name)):
            if time.monotonic() > until:
                raise Absent(f"{name} has {len(seen)} replicas for {PATIENCE_S:.0f} s")
            time.sleep(LOOK_S)

    @staticmethod
    def is_asked(replica: psutil.Process) -> bool:
        """Whether HAProxy holds connections to a replica open, by its Unix socket."""
        with contextlib.suppress(psutil.Error):
            folder = f"/{sockets.FOLDER}/"
            return sum(folder in str(each.laddr) for each in replica.net_connections("unix")) > SOME
        return False

    @property
    def registry(self) -> Registry:
        """Its registry."""
        settings = Settings()
        return Registry(settings.registry, settings.storage("artifacts"))


@contextlib.contextmanager
def cluster(*options: str) -> Iterator[Cluster]:
    """Start a cluster in a home of its own, with further `options` of `tidepool up`; nothing of it is left afterwards.

    Raises:
        Absent: it doesn't start.
    """
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        os.environ["TIDEPOOL_HOME"] = folder
        mark = environment.mark(Settings())
        tidepool("up", "--http-port", str(port), "--dashboard-port", str(dashboard), *options)
        try:
            yield Cluster(Path(folder), port, mark)
        finally:
            subprocess.run([*COMMAND, "down"], stdout=subprocess.DEVNULL)
            processes.end(mark)


@contextlib.contextmanager
def serve(workload: Workload) -> Iterator[Server]:
    """Start a cluster, register the workload's network and deploy it.

    Raises:
        Absent: one of the commands fails.
    """
    with cluster() as running:
        expected = running.register(workload)
        running.registry.promote(NAME, 1)
        tidepool("deploy", NAME)
        server = running.server(workload)
        server.await_answer(expected)
        yield server


def tidepool(*arguments: str) -> None:
    """Run a command of tidepool's.

    Raises:
        Absent: it fails.
    """
    variables = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    done = subprocess.run([*COMMAND, *arguments], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise Absent(f"tidepool {arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
