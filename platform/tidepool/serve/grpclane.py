"""gRPC's ModelInfer in a replica's HTTP server: HTTP/1.1, answered with trailers.

HAProxy speaks HTTP/2 with gRPC's clients and passes their calls to infer on in HTTP/1.1 (`cluster.haproxy`), which
costs a replica a third of what `grpc.aio` takes. `GrpcLane` is uvicorn's protocol, whose parser reads a call unless it
is there whole, in one chunk (`framing.plain`); `Call` answers it. Whatever is wrong is told as gRPC tells it; what
isn't HTTP ends the connection, as uvicorn has it.
"""

from __future__ import annotations

import asyncio

from google.protobuf.message import DecodeError

from tidepool.errors import NotReady
from tidepool.serve import eager, framing, protobuf, shortcut
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.body import too_large, too_slow
from tidepool.serve.framing import FRAME, NAME, PATH, Refused
from tidepool.serve.grpc import Failure, check_name, failure, infer
from tidepool.serve.keepalive import KeptAlive
from tidepool.serve.rest import ModelApp


class Call:
    """One call to infer, from its headers on."""

    def __init__(self, lane: GrpcLane, headers: dict[bytes, bytes], keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        """uvicorn takes it away when the server ends."""
        self.response_complete = False
        """What uvicorn wants to know of a request: whether the next one may be answered."""
        self._lane, self._headers = lane, headers
        self._app: ModelApp | None = None
        self._key = ""
        self._parts: list[bytes] = []
        self._size = 0
        self._answering: asyncio.Task[bytes | Failure] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._patience: asyncio.TimerHandle | None = None
        try:
            self._enter()
        except Refused as refused:
            self._settle(refused.why)
        except Exception as error:
            self._settle(failure(error, NAME))

    def _enter(self) -> None:
        """Let the call in where it is for a model of this process."""
        headers = self._headers
        if headers.get(b"content-type", b"").partition(b";")[0].rstrip().lower() not in framing.CONTENT_TYPES:
            raise Refused(framing.NOT_GRPC)
        application = headers.get(b"application", b"").decode("latin-1")
        app = shortcut.published(f"/v2/models/{application}")
        if app is None:
            raise NotReady("no replica of this model answers here", seen=application, remedy="try again in a moment")
        seconds = framing.timeout_s(headers[b"grpc-timeout"]) if b"grpc-timeout" in headers else None
        self._key = app.enter(headers, int(headers.get(b"content-length", b"0")) - FRAME)
        self._app = app
        if seconds is not None:
            self._alarm = self._lane.loop.call_later(seconds, self._settle, framing.LATE)

    def await_body(self) -> None:
        """Its body comes in pieces: not for ever."""
        if self._app is not None and not self.response_complete:
            late = failure(too_slow(self._app.patience_s), NAME)
            self._patience = self._lane.loop.call_later(self._app.patience_s, self._settle, late)

    def take(self, data: bytes) -> None:
        """Some bytes of its body have come."""
        if self._app is None or self.response_complete:
            return
        self._parts.append(data)
        self._size += len(data)
        limit = self._app.max_body_bytes
        if self._size > limit + FRAME:
            self._settle(failure(too_large(self._size - FRAME, limit), NAME))

    def end(self) -> None:
        """All of them have come."""
        if self._app is None or self.response_complete:
            return
        if self._patience is not None:
            self._patience.cancel()
        outcome = eager.start(self._answer(self._app))
        if isinstance(outcome, asyncio.Task):
            self._answering = outcome
            # When the server ends it waits for these, as for uvicorn's own.
            self._lane.tasks.add(outcome)  # type: ignore[arg-type]
            outcome.add_done_callback(self._finish)
        else:
            self._settle(outcome)

    async def _answer(self, app: ModelApp) -> bytes | Failure:
        try:
            encoding = self._headers.get(b"grpc-encoding", b"")
            message = framing.unframed(b"".join(self._parts), encoding, app.max_body_bytes)
            request = pb.ModelInferRequest.FromString(message)
            check_name(request.model_name, app.dataplane)
            return protobuf.serialize(await infer(app.dataplane, request, self._key, self._left_s()))
        except Refused as refused:
            return refused.why
        except DecodeError:
            return framing.NO_MESSAGE
        except Exception as error:
            return failure(error, NAME)

    def _left_s(self) -> float | None:
        """Seconds until nobody waits for the answer any more."""
        return None if self._alarm is None else self._alarm.when() - self._lane.loop.time()

    def _finish(self, task: asyncio.Task[bytes | Failure]) -> None:
        self._lane.tasks.discard(task)
        if task.cancelled():
            self.abandon()
        else:
            self._settle(task.result())

    def _settle(self, outcome: bytes | Failure) -> None:
        """Answer, unless that was done before."""
        if not self.response_complete:
            self.abandon()
            self._lane.send(framing.written(outcome, self.keep_alive), self.keep_alive)

    def abandon(self) -> None:
        """Give up its place: the client is gone, or has its answer."""
        if self.response_complete:
            return
        self.response_complete = True
        self._parts.clear()
        for timer in (self._alarm, self._patience):
            if timer is not None:
                timer.cancel()
        if self._app is not None:
            self._app.leave(self._key)
        if self._answering is not None:
            self._answering.cancel()


class GrpcLane(KeptAlive):
    """uvicorn's protocol, which answers calls to infer itself."""

    _call: Call | None = None
    """The last one."""
    _parses = False
    """Whether the parser is in the middle of a request."""

    def data_received(self, data: bytes) -> None:
        """Take some bytes of the connection."""
        if (read := framing.plain(data)) is None or self._is_taken():
            super().data_received(data)
            return
        headers, body = read
        call = self._begin(Call(self, headers, keep_alive=True))
        call.take(body)
        call.end()

    def _is_taken(self) -> bool:
        """Whether a request is on its way in, or its answer out."""
        return self._parses or self._is_answering()

    def _begin(self, call: Call) -> Call:
        self._call = call
        self.cycle = call  # type: ignore[assignment]
        return call

    def on_message_begin(self) -> None:
        """The parser meets the beginning of a request."""
        self._parses = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The parser has met the end of a request's headers."""
        if not self._is_call():
            super().on_headers_complete()
        elif self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # HAProxy sends no call before the last answer, and nobody else should
        else:
            self._begin(Call(self, dict(self.headers), self.parser.should_keep_alive())).await_body()

    def _is_call(self) -> bool:
        parser = self.parser
        if self.url != PATH or parser.get_method() != b"POST":
            return False
        return bool(parser.get_http_version() == "1.1" and not parser.should_upgrade())

    def on_body(self, body: bytes) -> None:
        """The parser has met some bytes of a request's body."""
        if isinstance(self.cycle, Call):
            self.cycle.take(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The parser has met the end of a request."""
        self._parses = False
        if isinstance(self.cycle, Call):
            self.cycle.end()
        else:
            super().on_message_complete()

    def send(self, answer: bytes, keep_alive: bool) -> None:
        """Send a whole response."""
        if self.transport.is_closing():
            return
        self.transport.write(answer)
        if not keep_alive:
            self.transport.close()
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        if self._call is not None:
            self._call.abandon()
        if isinstance(self.cycle, Call):
            self.cycle = None  # type: ignore[assignment]
        super().connection_lost(exc)
