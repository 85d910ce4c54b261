"""The Open Inference Protocol over gRPC: the calls of a model, and the table of their errors.

`Servicer` runs in a plain `grpc.aio` server as well as behind Ray Serve, which calls a deployment's methods of these
names with the request and a `grpc_context`. A failure sets code and details instead of raising: Serve would log a
traceback for each.
"""
# The protocol names the calls, and gRPC their arguments.
# ruff: noqa: N802, ARG002

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from tidepool import __version__, errors
from tidepool.errors import InvalidRequest, RequestTooLarge, TidepoolError, TryLater, UnknownModel
from tidepool.serve import health, protobuf, protocol, triton
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.auth import INFER, READ, Key, Keyring
from tidepool.serve.dataplane import Dataplane
from tidepool.serve.masking import outline
from tidepool.serve.protocol import InferResponse

log = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
CALLS: dict[str, tuple[Any, Any]] = {
    "ServerLive": (pb.ServerLiveRequest, pb.ServerLiveResponse),
    "ServerReady": (pb.ServerReadyRequest, pb.ServerReadyResponse),
    "ServerMetadata": (pb.ServerMetadataRequest, pb.ServerMetadataResponse),
    "ModelReady": (pb.ModelReadyRequest, pb.ModelReadyResponse),
    "ModelMetadata": (pb.ModelMetadataRequest, pb.ModelMetadataResponse),
    "ModelInfer": (pb.ModelInferRequest, pb.ModelInferResponse),
    "ModelConfig": (pb.ModelConfigRequest, pb.ModelConfigResponse),
    "ModelStatistics": (pb.ModelStatisticsRequest, pb.ModelStatisticsResponse),
    "RepositoryIndex": (pb.RepositoryIndexRequest, pb.RepositoryIndexResponse),
}
"""The service's calls with their messages."""

CODES: dict[type[TidepoolError], grpc.StatusCode] = {
    errors.TidepoolError: grpc.StatusCode.INTERNAL,
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.UnknownModel: grpc.StatusCode.NOT_FOUND,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.RequestTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.ClientGone: grpc.StatusCode.CANCELLED,
    errors.NotReady: grpc.StatusCode.UNAVAILABLE,
    errors.DoesNotFit: grpc.StatusCode.FAILED_PRECONDITION,
}
"""Status code of each kind of failure; a subclass has its nearest ancestor's."""
MAX_DETAILS = 800
"""Characters of a message that are sent: clients refuse trailers over 8 KiB, and a character may take nine bytes."""


class Context(Protocol):
    """What `grpc.aio.ServicerContext` and Serve's `RayServegRPCContext` have in common."""

    def invocation_metadata(self) -> Sequence[tuple[str, str | bytes]]:
        """The client's metadata, keys in lower case."""
        ...

    def set_code(self, code: grpc.StatusCode) -> None:
        """End the call with this status."""
        ...

    def set_details(self, details: str) -> None:
        """Say why."""
        ...

    def set_trailing_metadata(self, trailing_metadata: Sequence[tuple[str, str]]) -> None:
        """Send this after the answer."""
        ...


Call = Callable[[Any, Any, Context], Awaitable[Any]]


def code_of(error: TidepoolError) -> grpc.StatusCode:
    """The gRPC status code for `error`."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


@dataclass(frozen=True)
class Failure:
    """How a call ends that isn't answered."""

    code: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, str], ...] = ()
    """Sent after it."""


def failure(error: Exception, call: str) -> Failure:
    """What a client is told of an error in `call`; one that wasn't raised on purpose is logged, without its insides."""
    if not isinstance(error, TidepoolError):
        log.error("answering %s failed: %s", call, outline(error))
        return Failure(grpc.StatusCode.INTERNAL, f"the model failed: {type(error).__name__}")
    later = (("retry-after", str(max(1, math.ceil(error.retry_after_s)))),) if isinstance(error, TryLater) else ()
    return Failure(code_of(error), str(error)[:MAX_DETAILS], later)


def failing_softly(call: Call) -> Call:
    """Turn what `call` raises into a code and details; a cancelled call stays cancelled."""
    empty = CALLS[call.__name__][1]

    @functools.wraps(call)
    async def answer(self: Any, request: Any, grpc_context: Context) -> Any:
        try:
            return await call(self, request, grpc_context)
        except Exception as error:
            failed = failure(error, call.__name__)
        grpc_context.set_code(failed.code)
        grpc_context.set_details(failed.details)
        if failed.metadata:
            grpc_context.set_trailing_metadata(failed.metadata)
        return empty()

    return answer


class Servicer:
    """The calls of the protocol for one model. Names of methods are the protocol's."""

    def __init__(self, dataplane: Dataplane, keyring: Keyring | None, max_message_bytes: int) -> None:
        self._dataplane, self._keyring, self._max_message_bytes = dataplane, keyring, max_message_bytes

    @failing_softly
    async def ServerLive(self, request: pb.ServerLiveRequest, grpc_context: Context) -> pb.ServerLiveResponse:
        """Whether the replica answers at all."""
        return pb.ServerLiveResponse(live=True)

    @failing_softly
    async def ServerReady(self, request: pb.ServerReadyRequest, grpc_context: Context) -> pb.ServerReadyResponse:
        """Whether the model is loaded."""
        return pb.ServerReadyResponse(ready=self._dataplane.ready())

    @failing_softly
    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, grpc_context: Context
    ) -> pb.ServerMetadataResponse:
        """Name, version and extensions of the server."""
        return server_metadata()

    @failing_softly
    async def ModelReady(self, request: pb.ModelReadyRequest, grpc_context: Context) -> pb.ModelReadyResponse:
        """Whether requests for the model, in this version if one is named, would be answered."""
        ready = request.name == self._dataplane.model and self._dataplane.ready(request.version or None)
        return pb.ModelReadyResponse(ready=ready)

    @failing_softly
    async def ModelMetadata(self, request: pb.ModelMetadataRequest, grpc_context: Context) -> pb.ModelMetadataResponse:
        """The model's tensors and versions."""
        self._admit(request.name, grpc_context, READ)
        async with self._dataplane.held():
            return protobuf.model_metadata(self._dataplane.metadata(request.version or None))

    @failing_softly
    async def ModelInfer(self, request: pb.ModelInferRequest, grpc_context: Context) -> pb.ModelInferResponse:
        """Answer one request."""
        key = self._admit(request.model_name, grpc_context, INFER)
        size = request.ByteSize()
        if size > self._max_message_bytes:
            raise RequestTooLarge(
                "the message is too large",
                seen=f"{size} bytes",
                allowed=f"{self._max_message_bytes} bytes",
                remedy="send fewer rows at once",
            )
        if self._keyring is None or key is None:
            return protobuf.encode(await infer(self._dataplane, request, ""))
        if self._dataplane.ready(request.model_version or None):
            self._keyring.charge(key)
        return protobuf.encode(await infer(self._dataplane, request, key.id))

    @failing_softly
    async def ModelConfig(self, request: pb.ModelConfigRequest, grpc_context: Context) -> pb.ModelConfigResponse:
        """The model's tensors in the words of Triton's configuration."""
        self._admit(request.name, grpc_context, READ)
        async with self._dataplane.held():
            return protobuf.model_config(triton.config(self._dataplane.metadata(request.version or None)))

    @failing_softly
    async def ModelStatistics(
        self, request: pb.ModelStatisticsRequest, grpc_context: Context
    ) -> pb.ModelStatisticsResponse:
        """What the versions in memory, or one of them, have done in this replica."""
        self._admit(request.name, grpc_context, READ)
        return protobuf.model_statistics(self._dataplane.statistics(request.version or None))

    @failing_softly
    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, grpc_context: Context
    ) -> pb.RepositoryIndexResponse:
        """The versions that answer here; the gateway lists those of all models."""
        versions = self._dataplane.lineup.versions
        return protobuf.repository_index(triton.index(self._dataplane.model, versions))

    def _admit(self, model: str, grpc_context: Context, verb: str) -> Key | None:
        """The caller's key, which is good for `verb`; None where none is needed."""
        keyring = self._keyring
        key = None if keyring is None else keyring.check(api_key(grpc_context), self._dataplane.model, verb)
        check_name(model, self._dataplane)
        return key


def check_name(model: str, dataplane: Dataplane) -> None:
    """Make sure that a message is for the model that it has come to.

    Raises:
        UnknownModel: it isn't.
    """
    if model != dataplane.model:
        raise UnknownModel("no such model is served here", seen=model, allowed=dataplane.model)


async def infer(
    dataplane: Dataplane, request: pb.ModelInferRequest, key: str, within_s: float | None = None
) -> InferResponse:
    """The answer to a message from the holder of `key`, who waits for `within_s`, or for ever."""
    try:
        asked = protobuf.decode(request)
    except InvalidRequest as error:
        raise dataplane.plainer(error, request.model_version or None) from None
    if within_s is not None:
        protocol.hurry(asked, within_s)
    return await dataplane.infer(asked, request.model_version or None, key)


def api_key(grpc_context: Context) -> str:
    """What a call's metadata has as `x-api-key` or `authorization`; empty if there is neither."""
    metadata = dict(grpc_context.invocation_metadata())
    text = metadata.get("x-api-key") or metadata.get("authorization", "")
    return text if isinstance(text, str) else ""


def server_metadata() -> pb.ServerMetadataResponse:
    """What the server says of itself."""
    extensions = [name for name in protocol.EXTENSIONS if name not in protocol.OF_HTTP]
    return pb.ServerMetadataResponse(name=protocol.SERVER_NAME, version=__version__, extensions=extensions)


GRACE_S = 0.5
"""For which a replica's server waits at its end. Calls were answered before that; but a check of HAProxy's waits for a
word that a replica on its way out doesn't say, for seconds, and a server waits for its connections.
"""
_ANSWERING: list[Any] = []
"""The servicer of this process: none, or one in a replica."""


def answer_with(replica: Any, servicer: Any) -> None:
    """Let a replica answer with `servicer`, in its own gRPC server as well as when Serve passes a call on."""
    _ANSWERING[:] = [servicer]
    for call in CALLS:
        setattr(replica, call, getattr(servicer, call))


async def _stop(stop: Callable[[float | None], Awaitable[None]], grace: float | None = None) -> None:
    """End a server, sooner than Serve would have it."""
    await stop(None if grace is None else min(grace, GRACE_S))


def add_to_server(servicer: Any, server: Any) -> None:
    """Register the calls; Serve's `grpc_servicer_functions` names this function.

    In a replica its own servicer answers: as a service that Serve passes through, as it does with reflection, a call is
    spared Serve's machinery (as HTTP requests are by `shortcut`). Elsewhere `servicer` does.
    """
    if _ANSWERING and hasattr(server, "add_passthrough_service"):
        (servicer,) = _ANSWERING
        server.add_passthrough_service(SERVICE)
        server.add_passthrough_service(health.SERVICE)
        health.add_to_server(server, SERVICE)
        server.stop = functools.partial(_stop, server.stop)
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, name), request_deserializer=asked.FromString, response_serializer=given.SerializeToString
        )
        for name, (asked, given) in CALLS.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
