"""A cluster in a home of its own with small models in service, for clients that aren't tidepool's."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recipes

from letters import write_letters
from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, new_artifact, open_artifact
from tidepool.cluster import environment, processes
from tidepool.recipe import load_recipe
from tidepool.registry.client import Registry
from tidepool.settings import Settings

HERE = Path(__file__).parent
SUPPORT = HERE.parent / "support"
COMMAND = str(Path(sys.executable).with_name("tidepool"))
MODELS: dict[str, tuple[str, Mapping[str, Any], Callable[[Path], None]]] = {
    "digits": ("tidepool.recipes.digits:Digits", {"largest": 16.0}, recipes.write_digits),
    "letters": ("letters:Letters", {}, write_letters),
    "halves": ("recipes:Halves", {}, recipes.write_halves),
}
"""Name to recipe, fitted preprocessing, and what writes the network."""


@dataclass(frozen=True)
class Service:
    """Where it answers, and a key that opens everything."""

    http_port: int
    rpc_port: int
    key: str


@contextlib.contextmanager
def service() -> Iterator[Service]:
    """Start it; nothing of it is left afterwards."""
    http_port, rpc_port, dashboard_port = _free_ports(3)
    with tempfile.TemporaryDirectory(prefix="tp-") as home:
        os.environ["TIDEPOOL_HOME"] = home
        settings, mark = Settings(), environment.mark(Settings())
        ports = {"http": http_port, "grpc": rpc_port, "dashboard": dashboard_port}
        try:
            _tidepool("up", *(word for name, port in ports.items() for word in (f"--{name}-port", str(port))))
            for name in MODELS:
                _register(settings, name)
                _tidepool("deploy", name)
            yield Service(http_port, rpc_port, settings.cli_key_file.read_text())
        finally:
            subprocess.run([COMMAND, "down"], stdout=subprocess.DEVNULL)
            processes.end(mark)


def _register(settings: Settings, name: str) -> None:
    recipe, state, write = MODELS[name]
    serve = {"num_replicas": 1, "num_cpus": 0.1}
    spec = {"name": name, "recipe": recipe, "data": {"source": "none"}, "serve": serve}
    about: dict[str, Any] = {"params": {}, "preprocessing_state": state, "metrics": {}, "lineage": {"spec": spec}}
    uri = f"{settings.root}/{name}"
    with new_artifact(uri, name=name, recipe_path=recipe, signature=load_recipe(recipe).signature, **about) as building:
        write(building / ONNX)
        (building / WEIGHTS).write_bytes(b"")
        (building / GOLDEN).write_bytes(b"")
    registry = Registry(settings.registry, settings.storage("artifacts"))
    registry.promote(name, registry.register(open_artifact(uri)).version)


def _tidepool(*arguments: str) -> None:
    path = os.pathsep.join([str(HERE), str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run([COMMAND, *arguments], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"tidepool {' '.join(arguments)}: {done.stderr}")


def _free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports
