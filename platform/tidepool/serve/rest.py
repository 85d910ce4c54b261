"""The Open Inference Protocol over HTTP: one small ASGI application for a model, and the table of its errors."""

from __future__ import annotations

import asyncio
import logging
import math
import sys
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

import orjson

from tidepool import errors
from tidepool.errors import ClientGone, InvalidRequest, TidepoolError, UnknownModel
from tidepool.serve import codecs
from tidepool.serve.auth import Keyring
from tidepool.serve.body import Receive, read_body
from tidepool.serve.dataplane import Dataplane
from tidepool.serve.masking import outline
from tidepool.serve.protocol import InferResponse
from tidepool.serve.queueing import TryLater, try_later

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

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
}
"""HTTP status of each kind of failure; a subclass has its nearest ancestor's."""

JSON = (b"content-type", b"application/json")
OCTETS = (b"content-type", b"application/octet-stream")
BINARY_LENGTH = b"inference-header-content-length"


def status_of(error: TidepoolError) -> int:
    """The HTTP status for `error`."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


class ModelApp:
    """The routes below `/v2/models/<model>`."""

    def __init__(
        self, dataplane: Dataplane, keyring: Keyring | None, max_body_bytes: int, max_in_air: int = sys.maxsize
    ) -> None:
        """`max_in_air`: inference requests at a time; one more is refused before its body is read."""
        self._dataplane, self._keyring = dataplane, keyring
        self._max_body_bytes, self._max_in_air = max_body_bytes, max_in_air
        self._in_air = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""
        if scope["type"] != "http":
            return
        try:
            status, headers, body = await self._answer(scope, receive)
        except TidepoolError as error:
            status, headers, body = status_of(error), [JSON], error_body(str(error))
            if status == 401:
                headers.append((b"www-authenticate", b"Bearer"))
            if isinstance(error, TryLater):
                headers.append((b"retry-after", b"%d" % math.ceil(error.retry_after_s)))
        except Exception as error:
            log.error("answering %s failed: %s", scope["path"], outline(error))
            status, headers, body = 500, [JSON], error_body(f"the model failed: {type(error).__name__}")
        await respond(send, status, headers, body)

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, Headers, bytes]:
        path = scope["path"].removeprefix(scope.get("root_path", "")).rstrip("/")
        match path.split("/")[1:]:
            case ["infer"]:
                return await self._infer(scope, receive, None)
            case ["versions", version, "infer"]:
                return await self._infer(scope, receive, version)
            case ["ready"]:
                return self._ready(scope, None)
            case ["versions", version, "ready"]:
                return self._ready(scope, version)
            case []:
                return self._told(scope, self._dataplane.metadata, None)
            case ["versions", version]:
                return self._told(scope, self._dataplane.metadata, version)
            case ["stats"]:
                return self._told(scope, self._dataplane.statistics, None)
            case ["versions", version, "stats"]:
                return self._told(scope, self._dataplane.statistics, version)
        raise UnknownModel("no such path", seen=scope["path"], allowed="see /docs")

    async def _infer(self, scope: Scope, receive: Receive, version: str | None) -> tuple[int, Headers, bytes]:
        if scope["method"] != "POST":
            return _wrong_method(b"POST")
        headers = dict(scope["headers"])
        key = self._authorize(headers)
        if self._in_air >= self._max_in_air:
            raise try_later(
                "the replica has its hands full", self._dataplane.backlog_s, seen=f"{self._in_air} requests"
            )
        self._in_air += 1
        try:
            return await self._answer_inference(headers, receive, version, key)
        finally:
            self._in_air -= 1

    async def _answer_inference(
        self, headers: dict[bytes, bytes], receive: Receive, version: str | None, key: str
    ) -> tuple[int, Headers, bytes]:
        body = await read_body(headers, receive, self._max_body_bytes)
        request = codecs.decode(body, _json_length(headers))
        answering = self._dataplane.infer(request, version, key)
        response = await (_unless_gone(answering, receive) if self._dataplane.is_busy else answering)
        content, json_length = codecs.encode(response)
        if json_length is None:
            return 200, [JSON], content
        return 200, [OCTETS, (BINARY_LENGTH, str(json_length).encode())], content

    def _ready(self, scope: Scope, version: str | None) -> tuple[int, Headers, bytes]:
        if scope["method"] not in ("GET", "HEAD"):
            return _wrong_method(b"GET, HEAD")
        ready = self._dataplane.ready(version)
        document = {"name": self._dataplane.model, "ready": ready}
        return 200 if ready else 404 if version else 503, [JSON], orjson.dumps(document)

    def _told(
        self, scope: Scope, tell: Callable[[str | None], dict[str, Any]], version: str | None
    ) -> tuple[int, Headers, bytes]:
        if scope["method"] not in ("GET", "HEAD"):
            return _wrong_method(b"GET, HEAD")
        self._authorize(dict(scope["headers"]))
        return 200, [JSON], orjson.dumps(tell(version))

    def _authorize(self, headers: dict[bytes, bytes]) -> str:
        """The id of the caller's key, empty where none is needed."""
        if self._keyring is None:
            return ""
        text = headers.get(b"x-api-key") or headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return self._keyring.check(text.decode("latin-1").strip(), self._dataplane.model).id


async def _unless_gone(answering: Coroutine[Any, Any, InferResponse], receive: Receive) -> InferResponse:
    """The answer, unless the client goes away first: then its request gives up its place.

    Raises:
        ClientGone: it went away.
    """
    answer, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGone("the client went away before its answer was there")
        return answer.result()
    finally:
        answer.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def error_body(message: str) -> bytes:
    """The protocol's one shape of an error."""
    return orjson.dumps({"error": message})


async def respond(send: Send, status: int, headers: Headers, body: bytes) -> None:
    """Send a whole response."""
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _wrong_method(allowed: bytes) -> tuple[int, Headers, bytes]:
    return 405, [JSON, (b"allow", allowed)], error_body(f"method not allowed. Allowed: {allowed.decode()}.")


def _json_length(headers: dict[bytes, bytes]) -> int | None:
    text = headers.get(BINARY_LENGTH)
    if text is None:
        return None
    if not text.isdigit():
        raise InvalidRequest("Inference-Header-Content-Length is not a number", seen=text.decode("latin-1"))
    return int(text)
