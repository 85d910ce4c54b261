"""gRPC calls about no model, and those whose model HAProxy couldn't read (compressed messages) or doesn't know."""
# The protocol names the calls, and gRPC their arguments.
# ruff: noqa: N802, ARG002

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from tidepool.errors import UnknownModel
from tidepool.serve import protobuf, triton
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.grpc import CALLS, SERVICE, code_of, server_metadata
from tidepool.serve.triton import Index

APPLICATION = "application"
"""The metadata key that HAProxy routes by."""
OWN = (APPLICATION, "user-agent", "grpc-", ":")
"""How metadata begins that isn't passed on."""


def subject(call: str, request: Any) -> str:
    """The model that a call is about."""
    return str(request.model_name if call == "ModelInfer" else request.name)


def refuse(model: str, grpc_context: Any) -> None:
    """Say that there is no such model."""
    unknown = UnknownModel("no such model is served", seen=model)
    grpc_context.set_code(code_of(unknown))
    grpc_context.set_details(str(unknown))


def _about_a_model(name: str) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    """Ask the front end again, naming the model in the metadata; who came with a name asked for none that is served."""
    asked, given = CALLS[name]

    async def answer(self: Reception, request: Any, grpc_context: Any) -> Any:
        model = subject(name, request)
        metadata = [(key, value) for key, value in grpc_context.invocation_metadata() if not key.startswith(OWN)]
        if APPLICATION not in dict(grpc_context.invocation_metadata()):
            call = self.channel.unary_unary(f"/{SERVICE}/{name}", asked.SerializeToString, given.FromString)
            timeout_s = grpc_context.time_remaining()
            try:
                return await call(request, metadata=(*metadata, (APPLICATION, model)), timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                grpc_context.set_code(error.code())
                grpc_context.set_details(error.details())
        elif name != "ModelReady":  # a model that isn't there isn't ready, which is no error
            refuse(model, grpc_context)
        return given()

    return answer


class Desk:
    """The calls about no model."""

    def __init__(self, served: Callable[[], Index], readiness: Callable[[], bool]) -> None:
        """`served` lists the versions in service, `readiness` says whether all of them answer."""
        self._served, self._readiness = served, readiness

    async def ServerLive(self, request: pb.ServerLiveRequest, grpc_context: Any) -> pb.ServerLiveResponse:
        """The server answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, grpc_context: Any) -> pb.ServerReadyResponse:
        """All that is in service answers."""
        return pb.ServerReadyResponse(ready=await asyncio.to_thread(self._readiness))

    async def ServerMetadata(self, request: pb.ServerMetadataRequest, grpc_context: Any) -> pb.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return server_metadata()

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, grpc_context: Any
    ) -> pb.RepositoryIndexResponse:
        """The versions of all models."""
        return protobuf.repository_index(triton.listed(await asyncio.to_thread(self._served), request.ready))


class Reception(Desk):
    """The protocol's calls at the gateway."""

    def __init__(self, address: str, served: Callable[[], Index], readiness: Callable[[], bool]) -> None:
        """`address` is `host:port` of the front end; the others are a `Desk`'s."""
        super().__init__(served, readiness)
        self._address = address
        self._channel: Any = None

    @property
    def channel(self) -> Any:
        """To the front end; made in the event loop that uses it."""
        if self._channel is None:
            unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
            self._channel = grpc.aio.insecure_channel(self._address, unlimited)
        return self._channel

    ModelReady = _about_a_model("ModelReady")
    ModelMetadata = _about_a_model("ModelMetadata")
    ModelInfer = _about_a_model("ModelInfer")
    ModelConfig = _about_a_model("ModelConfig")
    ModelStatistics = _about_a_model("ModelStatistics")
