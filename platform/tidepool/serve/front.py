"""One gRPC port for all models: finds the application of a call by the model that its message names.

Serve's own gRPC port wants the `application` metadata key as soon as two applications exist, and clients of the
protocol don't send it. The front reads the model's name out of the message's bytes, adds the key, and passes the bytes
on as they are; it also answers what isn't about a model: `Server*`, `grpc.health.v1` and reflection.
"""
# gRPC names the arguments of a handler.
# ruff: noqa: ARG002

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from grpc_reflection.v1alpha import reflection

from tidepool.errors import InvalidRequest, NotReady, TidepoolError, UnknownModel
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.grpc import CALLS, SERVICE, code_of, server_metadata

PASSED_ON = ("ModelReady", "ModelMetadata", "ModelInfer")
HEALTHZ = "/ray.serve.RayServeAPIService/Healthz"
HEALTH = "grpc.health.v1.Health"
CONNECTIONS = 4
"""To Serve's port: HAProxy takes 100 calls at once on each."""
_MAX_FIELDS = 1000
"""Fields that are looked through for the model's name: it is the first that clients write."""
_OWN = ("application", "user-agent")
"""Metadata that the front sets itself; gRPC sets what begins with `grpc-`."""


class Front:
    """A gRPC server that passes calls on to Serve's gRPC port.

    Args:
        upstream: `host:port` of Serve's gRPC port.
        max_message_bytes: longer messages are refused with RESOURCE_EXHAUSTED.
        application: the Serve application that a model is in, by the model's name.
        healthy_s: seconds that an upstream has to answer a health check.
    """

    def __init__(
        self,
        upstream: str,
        max_message_bytes: int,
        application: Callable[[str], str] = lambda model: model,
        healthy_s: float = 2.0,
    ) -> None:
        self._upstream, self._max_message_bytes = upstream, max_message_bytes
        self._application, self._healthy_s = application, healthy_s
        self._server: Any = None
        self._channels: list[Any] = []

    async def start(self, port: int = 0, host: str = "[::]") -> int:
        """Listen; returns the port, which the system chooses for 0.

        Raises:
            RuntimeError: the port is taken.
        """
        limits = [
            ("grpc.max_receive_message_length", self._max_message_bytes),
            ("grpc.max_send_message_length", -1),
            # Two fronts on one port would each get some of the calls.
            ("grpc.so_reuseport", 0),
        ]
        upstream_options = [
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            # Else channels to one address share one connection.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self._channels = [grpc.aio.insecure_channel(self._upstream, upstream_options) for _ in range(CONNECTIONS)]
        self._server = grpc.aio.server(options=limits)
        handlers = {name: self._forwarding(name) for name in PASSED_ON} | {
            "ServerLive": _handler("ServerLive", self._live),
            "ServerReady": _handler("ServerReady", self._ready),
            "ServerMetadata": _handler("ServerMetadata", self._metadata),
        }
        health = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(SERVICE, handlers),
                grpc.method_handlers_generic_handler(HEALTH, health),
            )
        )
        reflection.enable_server_reflection((SERVICE, reflection.SERVICE_NAME), self._server)
        bound: int = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        return bound

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no more calls, give those under way `grace_s` seconds, and close the connections."""
        await self._server.stop(grace_s)
        for channel in self._channels:
            await channel.close()

    def _forwarding(self, name: str) -> Any:
        """The handler that passes bytes on to the call of that name, each time over the next connection."""
        calls = itertools.cycle([channel.unary_unary(f"/{SERVICE}/{name}") for channel in self._channels])

        async def forward(request: bytes, context: Any) -> bytes:
            try:
                model = model_of(request)
                application = self._application(model)
            except TidepoolError as error:
                return _fail(context, code_of(error), str(error))
            metadata = [
                (key, value)
                for key, value in context.invocation_metadata()
                if key not in _OWN and not key.startswith("grpc-")
            ]
            call = next(calls)(
                request, metadata=(*metadata, ("application", application)), timeout=context.time_remaining()
            )
            try:
                response: bytes = await call
            except grpc.aio.AioRpcError as error:
                context.set_trailing_metadata(error.trailing_metadata())
                return _fail(context, *_translate(error, model))
            context.set_trailing_metadata(await call.trailing_metadata())
            return response

        return grpc.unary_unary_rpc_method_handler(forward)

    async def _live(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=await self._healthy())

    async def _metadata(self, request: Any, context: Any) -> Any:
        return server_metadata()

    async def _check(self, request: bytes, context: Any) -> bytes:
        service = first_string(request)
        if service not in (None, "", SERVICE):
            return _fail(context, grpc.StatusCode.NOT_FOUND, f"no service {service}")
        return _health_status(await self._healthy())

    async def _watch(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        told: bytes | None = None
        while True:
            known = first_string(request) in (None, "", SERVICE)
            status = _health_status(await self._healthy()) if known else _SERVICE_UNKNOWN
            if status != told:
                yield (told := status)
            await asyncio.sleep(1.0)

    async def _healthy(self) -> bool:
        """Whether Serve's port answers and has a replica behind it."""
        try:
            await self._channels[0].unary_unary(HEALTHZ)(b"", timeout=self._healthy_s)
        except grpc.aio.AioRpcError:
            return False
        return True


def model_of(message: bytes) -> str:
    """The model that a request names: its field 1, in every message that is about a model.

    Raises:
        InvalidRequest: it names none, or isn't a protobuf message.
    """
    name = first_string(message)
    if not name:
        raise InvalidRequest("the request names no model", remedy="set model_name")
    return name


def first_string(message: bytes) -> str | None:
    """Field 1 of a protobuf message, without decoding the rest; None if it isn't there, or is no text.

    Source: https://protobuf.dev/programming-guides/encoding
    """
    at = 0
    try:
        for _ in range(_MAX_FIELDS):
            tag, at = _varint(message, at)
            match tag & 7:
                case 0:
                    _, at = _varint(message, at)
                case 1:
                    at += 8
                case 2:
                    length, at = _varint(message, at)
                    if tag >> 3 == 1:
                        return message[at : at + length].decode() if at + length <= len(message) else None
                    at += length
                case 5:
                    at += 4
                case _:
                    return None
    except (IndexError, UnicodeDecodeError):
        pass
    return None


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """The number at `at`, seven bits a byte, lowest first, and where it ends."""
    value = 0
    for position in range(10):
        byte = message[at + position]
        value |= (byte & 127) << (7 * position)
        if byte < 128:
            return value, at + position + 1
    raise IndexError(at)


def _translate(error: grpc.aio.AioRpcError, model: str) -> tuple[grpc.StatusCode, str]:
    """Code and details for the client: a replica's own as they are, those of Serve's port in the protocol's words."""
    code, details = error.code(), error.details() or ""
    if code == grpc.StatusCode.NOT_FOUND and details.startswith("Application "):
        unknown = UnknownModel("no such model is served", seen=model)
        return code_of(unknown), str(unknown)
    if code == grpc.StatusCode.UNKNOWN and "http2 header" in details:
        # HAProxy's page for "no replica answers", which isn't gRPC.
        away = NotReady(f"no replica of {model} answers", remedy="try again in a moment")
        return code_of(away), str(away)
    return code, details


def _fail(context: Any, code: grpc.StatusCode, details: str) -> bytes:
    context.set_code(code)
    context.set_details(details)
    return b""


def _handler(name: str, answer: Any) -> Any:
    asked, given = CALLS[name]
    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=asked.FromString, response_serializer=given.SerializeToString
    )


# HealthCheckResponse{status=1: SERVING=1, NOT_SERVING=2, SERVICE_UNKNOWN=3}, two bytes each. Generated messages of
# grpc.health.v1 would clash with those of grpcio-health-checking in a process that has both.
_SERVICE_UNKNOWN = b"\x08\x03"


def _health_status(serving: bool) -> bytes:
    return b"\x08\x01" if serving else b"\x08\x02"
