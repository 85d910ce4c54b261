"""The Open Inference Protocol over HTTP: one small ASGI application for a model, and the table of its errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import orjson

from tidepool import errors
from tidepool.errors import InvalidRequest, TidepoolError, TryLater, UnknownModel
from tidepool.serve import codecs, explaining, generating, triton
from tidepool.serve.auth import EXPLAIN, INFER, READ, Key, Keyring
from tidepool.serve.body import LEAST_PACKED, PATIENCE_S, WINDOW, Body, Receive, pack, read_body, too_large
from tidepool.serve.dataplane import Dataplane
from tidepool.serve.gradients import Gradients
from tidepool.serve.heads import JSON_LENGTH, declared, json_length
from tidepool.serve.masking import outline
from tidepool.serve.presence import Held, stream, unless_gone
from tidepool.serve.protocol import InferResponse
from tidepool.serve.queueing import try_later

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]
"""Status, headers without the length, and body."""

STATUS: dict[type[TidepoolError], int] = {
    errors.TidepoolError: 500,
    errors.InvalidRequest: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.UnknownModel: 404,
    errors.ModelNotFound: 404,
    errors.RequestTooLarge: 413,
    errors.ClientGone: 499,
    errors.Overloaded: 429,
    errors.NotReady: 503,
    errors.DoesNotFit: 507,
}
"""HTTP status of each kind of failure; a subclass has its nearest ancestor's."""

JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")
EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")
PNG = (b"content-type", b"image/png")
SPARED = 8
"""Of the places in a replica, the last one in so many is kept for API keys that have fewer than that."""


def status_of(error: TidepoolError) -> int:
    """The HTTP status for `error`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


class ModelApp:
    """The routes below `/v2/models/<model>`."""

    def __init__(
        self,
        dataplane: Dataplane,
        keyring: Keyring | None,
        max_body_bytes: int,
        max_in_air: int = sys.maxsize,
        patience_s: float = PATIENCE_S,
        gradients: Gradients | None = None,
    ) -> None:
        """`max_in_air`: inference requests at a time; one more is refused before its body is read. `patience_s`: how
        long a body may take to come. `gradients`: where several models share it.
        """
        self._gradients = gradients or Gradients()
        self.dataplane, self._keyring = dataplane, keyring
        self.max_body_bytes, self._max_in_air, self.patience_s = max_body_bytes, max_in_air, patience_s
        self.in_air = 0
        """Requests that were let in and haven't left."""
        self._held, self._spared = dict[str, int](), max_in_air // SPARED  # by each API key; for those with few

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except Exception as error:
            status, headers, body = failed(error, self.dataplane.model)
        if isinstance(body, bytes):
            await respond(send, status, headers, body)
        else:
            await stream(send, receive, headers, body)

    def enter(self, headers: Mapping[bytes, bytes], length: int, version: str | None = None, verb: str = INFER) -> str:
        """Let in a request to infer or to explain, by `verb`, that will be `length` bytes long, or 0 where that isn't
        known; who was let in leaves. Returns the id of its API key, empty where none is needed; the key is charged
        unless the version isn't there to answer.

        Raises:
            Unauthenticated: no good key.
            Forbidden: the key doesn't open this model, or not for this.
            TryLater: the replica has its hands full, or the key has asked too often.
            RequestTooLarge: it is longer than allowed.
        """
        key = self._authenticate(headers, verb)
        id_ = "" if key is None else key.id
        held = self._held.get(id_, 0)
        most = self._max_in_air - (self._spared if id_ and held >= self._spared else 0)
        if self.in_air >= most:
            raise try_later("the replica has its hands full", self.dataplane.backlog_s, seen=self.in_air, allowed=most)
        if length > self.max_body_bytes:
            raise too_large(length, self.max_body_bytes)
        if self._keyring is not None and key is not None and self.dataplane.ready(version):
            self._keyring.charge(key)
        self.in_air += 1
        self._held[id_] = held + 1
        return id_

    def leave(self, key: str) -> None:
        """A request of this key that was let in has its answer, or won't get one."""
        self.in_air -= 1
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]

    async def infer(self, headers: Mapping[bytes, bytes], body: Body, version: str | None, key: str) -> Answer:
        """The answer to a request that was let in, a failure included."""
        try:
            request = codecs.decode(body, json_length(headers))
            return await _encoded(await self.dataplane.infer(request, version, key), headers)
        except Exception as error:
            return failed(self.dataplane.plainer(error, version), self.dataplane.model)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer | tuple[int, Headers, Held]:
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        match path.split("/")[1:]:
            case ["infer"]:
                return await self._infer(scope, receive, None)
            case ["versions", version, "infer"]:
                return await self._infer(scope, receive, version)
            case ["explain"]:
                return await self._infer(scope, receive, None, EXPLAIN)
            case ["versions", version, "explain"]:
                return await self._infer(scope, receive, version, EXPLAIN)
            case ["generate" | "generate_stream" as way]:
                return await self._generate(scope, receive, None, way)
            case ["versions", version, "generate" | "generate_stream" as way]:
                return await self._generate(scope, receive, version, way)
            case ["ready"]:
                return self._ready(scope, None)
            case ["versions", version, "ready"]:
                return self._ready(scope, version)
            case []:
                return await self._told(scope, self._metadata, None)
            case ["versions", version]:
                return await self._told(scope, self._metadata, version)
            case ["config"]:
                return await self._told(scope, self._config, None)
            case ["versions", version, "config"]:
                return await self._told(scope, self._config, version)
            case ["stats"]:
                return await self._told(scope, self._statistics, None)
            case ["versions", version, "stats"]:
                return await self._told(scope, self._statistics, version)
        raise UnknownModel("no such path", seen=scope["path"], allowed="see /docs")

    async def _infer(self, scope: Scope, receive: Receive, version: str | None, verb: str = INFER) -> Answer:
        if scope["method"] != "POST":
            return _wrong_method(b"POST")
        headers = dict(scope["headers"])
        key = self.enter(headers, declared(headers), version, verb)
        try:
            body = await read_body(headers, receive, self.max_body_bytes, self.patience_s)
            if verb == EXPLAIN:
                return await unless_gone(self._explain(headers, body, version, key), receive)
            answering = self.infer(headers, body, version, key)
            return await (unless_gone(answering, receive) if self.dataplane.is_busy else answering)
        except InvalidRequest as error:
            raise self.dataplane.plainer(error, version) from None
        finally:
            self.leave(key)

    async def _explain(self, headers: Mapping[bytes, bytes], body: Body, version: str | None, key: str) -> Answer:
        request = codecs.decode(body, json_length(headers))
        async with self.dataplane.held():
            explained = await explaining.explain(self.dataplane, request, version, key, self._gradients)
        if PNG[1] in headers.get(b"accept", b""):
            return 200, [PNG], await asyncio.to_thread(explained.picture)
        return await _encoded(explained.response(self.dataplane.model), headers)

    async def _generate(
        self, scope: Scope, receive: Receive, version: str | None, way: str
    ) -> Answer | tuple[int, Headers, Held]:
        if scope["method"] != "POST":
            return _wrong_method(b"POST")
        headers = dict(scope["headers"])
        key = self.enter(headers, declared(headers), version)
        try:
            prompt = generating.decode(await read_body(headers, receive, self.max_body_bytes, self.patience_s))
            async with contextlib.AsyncExitStack() as hold:
                await hold.enter_async_context(self.dataplane.held())
                generation = self.dataplane.generate(prompt, version, key)
                if way == "generate":
                    return 200, [JSON], await unless_gone(generation.whole(), receive)
                await hold.enter_async_context(contextlib.aclosing(generation.pieces))
                events = await unless_gone(generation.stream(), receive)
                # From here on it is bounded as a generation.
                return 200, [EVENTS], Held(hold.pop_all(), events)
        finally:
            self.leave(key)

    def _ready(self, scope: Scope, version: str | None) -> Answer:
        if scope["method"] not in ("GET", "HEAD"):
            return _wrong_method(b"GET, HEAD")
        ready = self.dataplane.ready(version)
        document = {"name": self.dataplane.model, "ready": ready}
        return 200 if ready else 404 if version else 503, [JSON], orjson.dumps(document)

    async def _told(
        self, scope: Scope, tell: Callable[[str | None], Awaitable[dict[str, Any]]], version: str | None
    ) -> Answer:
        if scope["method"] not in ("GET", "HEAD"):
            return _wrong_method(b"GET, HEAD")
        self._authenticate(dict(scope["headers"]), READ)
        return 200, [JSON], orjson.dumps(await tell(version))

    async def _metadata(self, version: str | None) -> dict[str, Any]:
        async with self.dataplane.held():
            return self.dataplane.metadata(version)

    async def _statistics(self, version: str | None) -> dict[str, Any]:
        return self.dataplane.statistics(version)

    async def _config(self, version: str | None) -> dict[str, Any]:
        return triton.config(await self._metadata(version))

    def _authenticate(self, headers: Mapping[bytes, bytes], verb: str) -> Key | None:
        """The caller's key, which is good for `verb`; None where none is needed."""
        if self._keyring is None:
            return None
        sent = headers.get(b"x-api-key") or headers.get(b"authorization", b"")
        return self._keyring.check(sent.decode("latin-1"), self.dataplane.model, verb)


def failed(error: Exception, model: str) -> Answer:
    """The answer that tells of an error; one that wasn't raised on purpose is logged, without its insides."""
    if not isinstance(error, TidepoolError):
        log.error("answering for %s failed: %s", model, outline(error))
        return 500, [JSON], error_body(f"the model failed: {type(error).__name__}")
    status, headers = status_of(error), [JSON]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, TryLater):
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    return status, headers, error_body(str(error))


def error_body(message: str) -> bytes:
    """The protocol's one shape of an error."""
    return orjson.dumps({"error": message})


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response."""
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _encoded(response: InferResponse, asked: Mapping[bytes, bytes]) -> Answer:
    """Packed for who asks for that, by naming one encoding: most clients name several, and want speed."""
    content, length = codecs.encode(response)
    headers = [JSON] if length is None else [OCTETS, (JSON_LENGTH, b"%d" % length)]
    encoding = asked.get(b"accept-encoding")
    if encoding in WINDOW and len(content) >= LEAST_PACKED:
        content = await pack(content, encoding)
        headers += [(b"content-encoding", encoding), (b"vary", b"accept-encoding")]
    return 200, headers, content


def _wrong_method(allowed: bytes) -> Answer:
    return 405, [JSON, (b"allow", allowed)], error_body(f"method not allowed. Allowed: {allowed.decode()}.")
