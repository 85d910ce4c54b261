"""The fast lane of a replica's HTTP server: a plain inference request is read, answered and written in one go.

uvicorn's way to an ASGI application makes a parser's callbacks, a scope, a task, an event and two writes of each
request: more than both codecs and a small model take. `Lane` is uvicorn's own protocol with one turning before it: a
connection with nothing else in the air whose next bytes are a plain POST to a model of this process (see `plain`) is
answered here. Everything else goes uvicorn's way from its first byte on, errors before the model included.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass
from functools import lru_cache

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tidepool.errors import TidepoolError
from tidepool.serve import eager, shortcut
from tidepool.serve.body import Body, too_slow
from tidepool.serve.grpclane import GrpcLane
from tidepool.serve.heads import END, LONGEST_HEAD, fields, is_length
from tidepool.serve.intake import LARGE, Intake, memory
from tidepool.serve.rest import Answer, ModelApp, failed

OPENING = b"POST /v2/"
REQUEST_LINE = re.compile(rb"POST (/v2/models/[\w.-]+)(?:/versions/([\w.-]+))?/infer HTTP/1\.1")
DETOURS = frozenset([b"transfer-encoding", b"content-encoding"])
"""Headers that mean more than this lane knows."""


@dataclass(frozen=True, slots=True)
class Head:
    """What comes before the body of a plain request."""

    prefix: str
    """The path of the model."""
    version: str | None
    headers: dict[bytes, bytes]
    length: int
    """Of the body, in bytes."""


@lru_cache(maxsize=256)
def plain(head: bytes) -> Head | None:
    """What `head` says, up to its empty line, or None unless it is plain: to infer, of HTTP/1.1, well-formed, no header
    twice, its body's length declared, and nothing asked of the connection. Clients repeat themselves: so does this.
    """
    request_line, *lines = head.split(b"\r\n")
    asked, headers = REQUEST_LINE.fullmatch(request_line), fields(lines)
    if asked is None or headers is None or not DETOURS.isdisjoint(headers):
        return None
    length = headers.get(b"content-length", b"")
    if not is_length(length):
        return None
    return Head(asked[1].decode(), asked[2].decode() if asked[2] else None, headers, int(length))


class Lane(GrpcLane):
    """One connection to a replica."""

    _head: Head | None = None
    """Of the request that is here in the lane; None while uvicorn has the connection."""
    _app: ModelApp
    """That answers it."""
    _key: str
    """The id of its API key."""
    _body: bytearray
    """What has come of its body, unless it came at once or is large."""
    _alarm: asyncio.TimerHandle | None = None
    """Until it has come, unless it came at once."""
    _answering: asyncio.Task[Answer] | None = None
    _early = b""
    """What came before its answer was there: the beginning of the next one."""
    _last = False

    def data_received(self, data: bytes) -> None:
        """Take some bytes of the connection."""
        if self._head is None:
            if not self._enter(data):
                super().data_received(data)
        elif self._answering is None:
            self._read_on(self._head, data)
        else:
            self._early += data
            self.flow.pause_reading()

    def _enter(self, data: bytes) -> bool:
        """Take a request into the lane that begins with `data`, if it is one for the lane."""
        end = data.find(END, 0, LONGEST_HEAD) if data.startswith(OPENING) else -1
        if end < 0 or self._is_taken() or (head := plain(data[:end])) is None:
            return False
        app, missing = shortcut.published(head.prefix), head.length + end + len(END) - len(data)
        if app is None or missing < 0:
            return False
        try:
            self._key = app.enter(head.headers, head.length, head.version)
        except TidepoolError:
            return False
        self._head, self._app = head, app
        if missing:
            self._alarm = self.loop.call_later(app.patience_s, self._give_up)
            self._await_body(head, memoryview(data)[end + len(END) :])
        else:
            self._start(head, data[end + len(END) :])
        return True

    def _await_body(self, head: Head, begun: memoryview) -> None:
        if head.length - len(begun) < LARGE:
            self._body = bytearray(begun)
            return
        room = memory(head.length)
        room[: len(begun)] = begun
        Intake(self.transport, self, room[len(begun) :], lambda: self._complete(head, room.toreadonly()))

    def _is_answering(self) -> bool:
        return self._head is not None or super()._is_answering()

    def _read_on(self, head: Head, data: bytes) -> None:
        missing = head.length - len(self._body)
        self._body += data[:missing]
        if len(self._body) == head.length:
            self._early = data[missing:]
            self._complete(head, self._body)

    def _complete(self, head: Head, body: Body) -> None:
        self._body = bytearray()
        self._be_calm()
        self._start(head, body)

    def _give_up(self) -> None:
        """The body hasn't come in time. What comes of it now is nothing: the connection ends."""
        self._last = True
        self._write(failed(too_slow(self._app.patience_s), self._app.dataplane.model))

    def _be_calm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()

    def _start(self, head: Head, body: Body) -> None:
        answer = eager.start(self._app.infer(head.headers, body, head.version, self._key))
        if isinstance(answer, asyncio.Task):
            self._answering = answer
            # When the server ends it waits for these, as for uvicorn's own.
            self.tasks.add(answer)  # type: ignore[arg-type]
            answer.add_done_callback(self._finish)
        else:
            self._write(answer)

    def _finish(self, task: asyncio.Task[Answer]) -> None:
        self.tasks.discard(task)
        self._answering = None
        if task.cancelled() or self.transport.is_closing():
            self._leave()
        else:
            self._write(task.result())

    def _write(self, answer: Answer) -> None:
        status, headers, body = answer
        lines = [*self.server_state.default_headers, *headers, (b"content-length", b"%d" % len(body))]
        if self._last:
            lines.append((b"connection", b"close"))
        head = b"".join([b"%b: %b\r\n" % line for line in lines])
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[status], head, body))
        self._leave()
        if self._last:
            self.transport.close()
        self.on_response_complete()
        if self._early:
            data, self._early = self._early, b""
            self.data_received(data)

    def _leave(self) -> None:
        self._head = None
        self._app.leave(self._key)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: its request gives up its place."""
        if self._answering is not None:
            self._answering.cancel()
        elif self._head is not None:
            self._be_calm()
            self._leave()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """The server ends: the request that is here is still answered."""
        if self._head is None:
            super().shutdown()
        else:
            self._last = True
