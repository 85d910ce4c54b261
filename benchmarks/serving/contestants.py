"""The servers that are measured: how each is started, where it answers, how it is ended."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import mlp

HERE = Path(__file__).parent
PATH = "/v2/models/mlp/infer"


@dataclass(frozen=True)
class Server:
    """A contestant that answers."""

    name: str
    port: int
    headers: dict[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def fastapi() -> Iterator[Server]:
    """FastAPI + uvicorn with uvloop and httptools, one process, no access log."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "mlp.onnx"
        mlp.write_onnx(model)
        command = [sys.executable, "-m", "uvicorn", "fastapi_server:app", "--port", str(port), "--no-access-log"]
        process = subprocess.Popen(command, cwd=HERE, env={**os.environ, "MODEL": str(model)})
        try:
            server = Server("FastAPI + uvicorn", port)
            await_answer(server)
            yield server
        finally:
            process.terminate()
            process.wait()


@contextlib.contextmanager
def tidepool() -> Iterator[Server]:
    """tidepool: one replica behind HAProxy, with its API keys, on a cluster of its own."""
    port, dashboard = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="tp-") as folder:
        os.environ["TIDEPOOL_HOME"] = folder
        command = [str(Path(sys.executable).with_name("tidepool"))]
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        subprocess.run(
            [*command, "up", "--http-port", str(port), "--dashboard-port", str(dashboard)],
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        try:
            register(Path(folder))
            subprocess.run([*command, "deploy", "mlp"], env=environment, check=True, stdout=subprocess.DEVNULL)
            server = Server("tidepool", port, {"authorization": f"Bearer {(Path(folder) / 'cli.key').read_text()}"})
            await_answer(server)
            yield server
        finally:
            subprocess.run([*command, "down"], env=environment, check=True, stdout=subprocess.DEVNULL)


def register(home: Path) -> None:
    """Register the network as version 1 of `mlp`."""
    from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, new_artifact, open_artifact
    from tidepool.registry.client import Registry
    from tidepool.settings import Settings

    spec = {
        "name": "mlp",
        "recipe": "mlp:Mlp",
        "data": {"source": "none"},
        "serve": {"num_replicas": 1, "num_cpus": 1},
    }
    uri = str(home / "mlp")
    recipe = mlp.Mlp()
    with new_artifact(
        uri,
        name="mlp",
        recipe_path="mlp:Mlp",
        params={},
        signature=recipe.signature,
        preprocessing_state={},
        metrics={},
        lineage={"spec": spec},
    ) as building:
        mlp.write_onnx(building / ONNX)
        (building / WEIGHTS).write_bytes(b"")
        (building / GOLDEN).write_bytes(b"")
    settings = Settings()
    registry = Registry(settings.registry, settings.storage("artifacts"))
    registry.promote("mlp", registry.register(open_artifact(uri)).version)


def await_answer(server: Server, deadline_s: float = 60) -> None:
    """Wait until the server answers the benchmark's request, and check that the answer is one."""
    until = time.monotonic() + deadline_s
    seen: object = None
    while time.monotonic() < until:
        try:
            response = httpx.post(f"http://127.0.0.1:{server.port}{PATH}", content=mlp.body(), headers=_json(server))
            seen = response.text
            if response.status_code == 200:
                assert [o["name"] for o in json.loads(response.text)["outputs"]] == ["digit", "probabilities"]
                return
        except httpx.TransportError as error:
            seen = error
        time.sleep(0.1)
    raise SystemExit(f"{server.name} doesn't answer: {seen}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _json(server: Server) -> dict[str, str]:
    return {"content-type": "application/json", **server.headers}
