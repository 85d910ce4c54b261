"""gRPC through Ray Serve behind HAProxy: straight to a replica for who names the application, else by the front.

Serve reads its environment when it is imported; so a process of its own deploys (this file, run as a program).
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from tidepool.cluster import local
from tidepool.cluster.ports import Ports
from tidepool.conformance.__main__ import main as conformance
from tidepool.serve import protobuf
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.auth import Key, digest
from tidepool.serve.grpc import SERVICE
from tidepool.settings import Settings

LIMIT = 4_000_000
KEY = (("authorization", "Bearer good"),)
MODELS = ("digits", "other")


class Model:
    """A replica of one model: what `tidepool.serve.app.Model` is, without registry and version table."""

    async def __init__(self, name: str, artifact: str) -> None:  # type: ignore[misc]
        from tidepool.artifact import open_artifact
        from tidepool.serve.auth import Keyring
        from tidepool.serve.dataplane import Dataplane, Lineup, load_version
        from tidepool.serve.grpc import CALLS, Servicer

        self._dataplane, self._keyring = Dataplane(name), Keyring([Key("1", "k", digest("good"), ("*",), 0.0, None)])
        self._dataplane.flip(Lineup("1", {"1": load_version("1", open_artifact(artifact))}))
        servicer = Servicer(self._dataplane, self._keyring, LIMIT)
        for call in CALLS:
            setattr(self, call, getattr(servicer, call))

    def __serve_build_asgi_app__(self) -> Any:
        from tidepool.serve.rest import ModelApp

        return ModelApp(self._dataplane, self._keyring, LIMIT)


class GrpcFront:
    """The front, in a deployment: Serve starts it anew if it ends."""

    async def __init__(self, upstream: str, port: int) -> None:  # type: ignore[misc]
        from tidepool.serve.front import Front

        self._front = Front(upstream, LIMIT)
        await self._front.start(port, "127.0.0.1")


def deploy(http: int, serve_grpc: int, front: int, artifact: str) -> None:
    """Serve, an application for each model, and the front."""
    with local.connect(Settings()):
        from ray import serve

        serve.start(
            http_options={"host": "127.0.0.1", "port": http},
            grpc_options={"port": serve_grpc, "grpc_servicer_functions": ["tidepool.serve.grpc.add_to_server"]},
        )
        options: dict[str, Any] = {"num_replicas": 1, "ray_actor_options": {"num_cpus": 0.1}}
        for name in MODELS:
            model = serve.deployment(**options)(serve.ingress()(Model)).bind(name, artifact)
            serve.run(model, name=name, route_prefix=f"/v2/models/{name}")
        serve.run(
            serve.deployment(**options)(GrpcFront).bind(f"127.0.0.1:{serve_grpc}", front),
            name="grpc",
            route_prefix=None,
        )


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def infer(port: int, model: str, metadata: Any = KEY, rows: int = 1) -> Any:
    message = protobuf.encode_request(
        {"image": np.zeros((rows, 64), np.float32)}, {"image": "FP32"}, model=model, raw=True
    )
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary(
            f"/{SERVICE}/ModelInfer",
            request_serializer=pb.ModelInferRequest.SerializeToString,
            response_deserializer=pb.ModelInferResponse.FromString,
        )
        return call(message, metadata=metadata, timeout=30)


def refusal(port: int, model: str, metadata: Any = KEY) -> tuple[str, str]:
    with pytest.raises(grpc.RpcError) as refused:
        infer(port, model, metadata)
    return refused.value.code().name, refused.value.details()


@pytest.mark.cluster
def test_grpc_reaches_every_model_behind_haproxy(
    home: Path, make_artifact: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    http, dashboard, serve_grpc, front = free_ports(4)
    local.up(Settings(), Ports(http, dashboard), num_cpus=4, num_gpus=0, resources={}, project=tmp_path)
    try:
        arguments = [str(argument) for argument in (http, serve_grpc, front, make_artifact(7))]
        subprocess.run([sys.executable, __file__, *arguments], check=True, timeout=120)

        for model in MODELS:
            named = infer(serve_grpc, model, (*KEY, ("application", model)))
            unnamed = infer(front, model)
            assert (named.model_name, unnamed.model_name) == (model, model)
            assert named.raw_output_contents == unnamed.raw_output_contents
        assert len(infer(front, "digits", rows=10_000).raw_output_contents[0]) == 80_000

        assert refusal(front, "digits", ())[0] == "UNAUTHENTICATED"
        assert refusal(serve_grpc, "digits", (("application", "digits"),))[0] == "UNAUTHENTICATED"
        assert refusal(front, "nonsense") == ("NOT_FOUND", "no such model is served. Seen: nonsense.")

        header = "Authorization: Bearer good"
        assert conformance(["--grpc", f"127.0.0.1:{front}", "--model", "digits", "--header", header, "--json"]) == 0
        assert [o for o in json.loads(capsys.readouterr().out) if o["verdict"] == "fail"] == []
    finally:
        local.down(Settings())


if __name__ == "__main__":
    deploy(*map(int, sys.argv[1:4]), sys.argv[4])
