"""Who is measured: how each peer is started and asked, and tidepool.

One worker each, no access log. What they make of it in processes differs: docs/serve.md says how.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import environments
import tidepool_server
import workloads
from environments import PEERS, Absent
from servers import Server, free_port
from workloads import Message, Workload

from tidepool.cluster import processes

HERE = Path(__file__).parent
GRACE_S = 20.0
"""Seconds that a server may take to end by itself."""
Contestant = Callable[[Workload], AbstractContextManager[Server]]


@dataclass(frozen=True)
class Way:
    """A path, and the form of the requests that it takes."""

    path: str
    message: Callable[[Workload], Message]


@dataclass(frozen=True)
class Peer:
    """How a peer is started and asked. Its requirements and its server are in peers/<folder>."""

    folder: str
    title: str
    command: tuple[str, ...]
    """After the interpreter; the words in braces are filled in by `serve`."""
    numbers: Way
    raw: Way | None = None
    """None: it takes no raw tensors over HTTP."""
    batched: Way | None = None
    """Where batches are made, if not where single rows go."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Settings, filled in likewise."""

    def way(self, workload: Workload) -> Way:
        """Where the workload's requests go.

        Raises:
            Absent: the peer has no form for them.
        """
        if workload.binary:
            if self.raw is None:
                raise Absent("takes no raw tensors over HTTP")
            return self.raw
        return self.batched if self.batched and workload.batch > 1 else self.numbers

    @contextlib.contextmanager
    def serve(self, workload: Workload, root: Path) -> Iterator[Server]:
        """Run the peer in its own environment below `root`.

        Raises:
            Absent: it can't be installed, doesn't start, or has no form for the workload.
        """
        way, python = self.way(workload), environments.python_of(self.folder, root)
        ports = {"port": str(free_port()), "spare": str(free_port())}
        words = {**ports, "batch": str(workload.batch), "bin": str(python.parent)}
        with tempfile.TemporaryDirectory(prefix="peer-") as folder:
            model, log = Path(folder) / "network.onnx", Path(folder) / "log"
            workload.write(model)
            server = Server(int(words["port"]), way.path, way.message(workload), f"benchmark-{secrets.token_hex(4)}")
            variables = {
                **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
                **{name: value.format(**words) for name, value in self.environment.items()},
                "MODEL": str(model),
                "PORT": words["port"],
                "BATCH": words["batch"],
                "PYTHONPATH": os.pathsep.join([str(HERE), str(PEERS / self.folder)]),
                processes.MARKER: server.mark,
            }
            command = [str(python), *(word.format(**words) for word in self.command)]
            with log.open("w") as out:
                process = subprocess.Popen(command, cwd=folder, env=variables, stdout=out, stderr=out)
            try:
                server.await_answer(workload.expected(model), lambda: _check(process, log))
                yield server
            finally:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE_S)
                processes.end(server.mark)
                process.wait()


def _check(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raise Absent, with the end of its log, if a server's process has ended."""
    if process.poll() is not None:
        raise Absent(f"ended with {process.returncode}: {(log.read_text().strip().splitlines() or [''])[-1]}")


ALL = (
    Peer(
        "fastapi",
        "FastAPI + uvicorn",
        ("-m", "uvicorn", "server:app", "--port", "{port}", "--no-access-log"),
        Way("/infer", workloads.protocol_json),
        Way("/infer/bytes", workloads.raw_bytes),
    ),
    Peer(
        "litserve",
        "LitServe",
        (str(PEERS / "litserve" / "server.py"),),
        Way("/predict", workloads.protocol_json),
        Way("/predict", workloads.base64_json),
    ),
    Peer(
        "bentoml",
        "BentoML",
        ("-m", "bentoml", "serve", "server:Server", "--host", "127.0.0.1", "--port", "{port}"),
        Way("/infer", workloads.keyword_json),
        Way("/infer_bytes", workloads.raw_bytes),
        batched=Way("/infer_batch", workloads.keyword_json),
        environment={"BENTOML_HOME": "bentoml", "BENTOML_DO_NOT_TRACK": "true"},
    ),
    Peer(
        "mlserver",
        "MLServer",
        ("{bin}/mlserver", "start", "."),
        Way("/v2/models/network/infer", workloads.protocol_json),
        environment={
            "MLSERVER_HOST": "127.0.0.1",
            "MLSERVER_HTTP_PORT": "{port}",
            "MLSERVER_GRPC_PORT": "{spare}",
            "MLSERVER_METRICS_ENDPOINT": "",
            "MLSERVER_DEBUG": "false",
            "MLSERVER_PARALLEL_WORKERS": "0",
            "MLSERVER_MODEL_NAME": "network",
            "MLSERVER_MODEL_IMPLEMENTATION": "server.Server",
            "MLSERVER_MODEL_MAX_BATCH_SIZE": "{batch}",
            "MLSERVER_MODEL_MAX_BATCH_TIME": "0.01",
        },
    ),
    Peer(
        "rayserve",
        "Ray Serve",
        (str(PEERS / "rayserve" / "server.py"),),
        Way("/", workloads.protocol_json),
        Way("/", workloads.raw_bytes),
        environment={"RAY_SERVE_ENABLE_HA_PROXY": "0"},
    ),
)


def contestants(names: list[str] | None, root: Path) -> dict[str, Contestant]:
    """Title to contestant: the peers with these folders, or all, and tidepool."""
    chosen = [peer for peer in ALL if names is None or peer.folder in names]
    return {**{peer.title: partial(peer.serve, root=root) for peer in chosen}, "tidepool": tidepool_server.serve}
