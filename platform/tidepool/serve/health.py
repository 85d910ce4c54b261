"""gRPC's own health service: https://github.com/grpc/grpc/blob/master/doc/health-checking.md

Messages are put together by hand, two bytes each: generated ones would clash with those of grpcio-health-checking in a
process that has both.
"""
# gRPC names the arguments of a handler.
# ruff: noqa: ARG001

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

SERVICE = "grpc.health.v1.Health"
SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x03"
"""HealthCheckResponse: its field 1, the status."""


def add_to_server(server: Any, served: str) -> None:
    """Say of the server as a whole and of the service `served` that they serve: a server that can't, ends."""
    known = (b"", b"\x0a\x00", b"\x0a" + bytes([len(served)]) + served.encode())

    async def check(request: bytes, context: Any) -> bytes:
        if request in known:
            return SERVING
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details("no such service")
        return b""

    async def watch(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield SERVING if request in known else SERVICE_UNKNOWN
        await asyncio.get_running_loop().create_future()  # until the client has enough

    handlers = {
        "Check": grpc.unary_unary_rpc_method_handler(check),
        "Watch": grpc.unary_stream_rpc_method_handler(watch),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
