"""tidepool as a contestant: one replica behind HAProxy, with its API keys, on a cluster of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import workloads
from environments import Absent
from servers import Server, free_port
from workloads import Message, Row, Workload

from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, new_artifact, open_artifact
from tidepool.cluster import environment, processes
from tidepool.recipe import load_recipe
from tidepool.registry.client import Registry
from tidepool.settings import Settings

HERE = Path(__file__).parent
NAME = "network"
COMMAND = (str(Path(sys.executable).with_name("tidepool")),)


@contextlib.contextmanager
def serve(workload: Workload) -> Iterator[Server]:
    """Start a cluster, register the workload's network and deploy it.

    Raises:
        Absent: one of the commands fails.
    """
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        os.environ["TIDEPOOL_HOME"] = folder
        mark = environment.mark(Settings())
        _tidepool("up", "--http-port", str(port), "--dashboard-port", str(dashboard))
        try:
            expected = register(Path(folder), workload)
            _tidepool("deploy", NAME)
            key = (Path(folder) / "cli.key").read_text()
            plain = workloads.protocol_binary(workload) if workload.binary else workloads.protocol_json(workload)
            message = Message(plain.body, {**plain.headers, "authorization": f"Bearer {key}"})
            server = Server(port, f"/v2/models/{NAME}/infer", message, mark)
            server.await_answer(expected)
            yield server
        finally:
            subprocess.run([*COMMAND, "down"], stdout=subprocess.DEVNULL)
            processes.end(mark)


def register(home: Path, workload: Workload) -> Row:
    """Register the network as version 1; returns what it is expected to answer."""
    recipe = f"recipes:{workload.recipe}"
    spec = {"name": NAME, "recipe": recipe, "data": {"source": "none"}, "serve": {"num_replicas": 1, "num_cpus": 1}}
    make = partial(new_artifact, name=NAME, recipe_path=recipe, params={}, preprocessing_state={}, metrics={})
    uri = str(home / NAME)
    with make(uri, signature=load_recipe(recipe).signature, lineage={"spec": spec}) as building:
        workload.write(building / ONNX)
        (building / WEIGHTS).write_bytes(b"")
        (building / GOLDEN).write_bytes(b"")
        expected = workload.expected(building / ONNX)
    settings = Settings()
    registry = Registry(settings.registry, settings.storage("artifacts"))
    registry.promote(NAME, registry.register(open_artifact(uri)).version)
    return expected


def _tidepool(*arguments: str) -> None:
    variables = {**os.environ, "PYTHONPATH": str(HERE)}
    done = subprocess.run([*COMMAND, *arguments], env=variables, capture_output=True, text=True)
    if done.returncode:
        raise Absent(f"tidepool {arguments[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
