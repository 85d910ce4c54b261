"""gRPC calls at a replica of several models: each goes to the one that it names."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import uvicorn

from tidepool.artifact import open_artifact
from tidepool.serve import protobuf
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.grpc import CALLS, SERVICE, Servicer, add_to_server
from tidepool.serve.shared import SharedApp, SharedServicer
from tidepool.serve.triton import index

Ask = Callable[[str, Any], Any]


@pytest.fixture
def ask(make_artifact: Callable[..., Path]) -> Ask:
    """Call a server of the models `1` and `2`, each of which answers with its name."""
    servicers = {}
    for number in (1, 2):
        plane = Dataplane(str(number))
        plane.flip(Lineup("1", {"1": load_version("1", open_artifact(str(make_artifact(number))))}))
        servicers[plane.model] = Servicer(plane, None, 1 << 20)

    def call(name: str, request: Any) -> Any:
        async def once() -> Any:
            server = grpc.aio.server()
            add_to_server(SharedServicer(servicers.get, lambda: index("1", ["1"]), lambda: True), server)
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            try:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                    asked, given = CALLS[name]
                    path = f"/{SERVICE}/{name}"
                    return await channel.unary_unary(path, asked.SerializeToString, given.FromString)(request)
            finally:
                await server.stop(None)

        return asyncio.run(once())

    return call


def infer(model: str) -> pb.ModelInferRequest:
    return protobuf.encode_request({"image": np.zeros((1, 64), np.float32)}, {"image": "FP32"}, model=model, raw=False)


def test_each_call_is_answered_by_the_model_that_it_names(ask: Ask) -> None:
    for model in ("1", "2"):
        answer = ask("ModelInfer", infer(model))
        assert (answer.model_name, answer.outputs[0].contents.int64_contents[0]) == (model, int(model))
        assert ask("ModelMetadata", pb.ModelMetadataRequest(name=model)).name == model
        assert ask("ModelConfig", pb.ModelConfigRequest(name=model)).config.name == model
        assert ask("ModelStatistics", pb.ModelStatisticsRequest(name=model)).model_stats[0].name == model


def test_a_model_that_is_not_there_is_not_found_and_not_ready(ask: Ask) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        ask("ModelInfer", infer("3"))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND
    assert not ask("ModelReady", pb.ModelReadyRequest(name="3")).ready
    assert ask("ModelReady", pb.ModelReadyRequest(name="2")).ready


def test_the_server_answers_for_itself(ask: Ask) -> None:
    assert ask("ServerLive", pb.ServerLiveRequest()).live
    assert ask("ServerMetadata", pb.ServerMetadataRequest()).name == "tidepool"
    assert ask("RepositoryIndex", pb.RepositoryIndexRequest()).models[0].name == "1"


def test_uvicorn_takes_the_application_for_what_it_is() -> None:
    config = uvicorn.Config(SharedApp({}), log_config=None)
    config.load()
    assert config.interface == "asgi3"
