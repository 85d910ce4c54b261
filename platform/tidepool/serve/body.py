"""Bodies: requests' are read whole, unpacked, and never longer than allowed; answers' are packed."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tidepool.errors import InvalidRequest, RequestTooLarge

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Body = bytes | bytearray | memoryview

PATIENCE_S = 60.0
"""Seconds that a client may take to send a body: while it does it has a place that others may want."""
WINDOW = {b"gzip": 16 + zlib.MAX_WBITS, b"deflate": zlib.MAX_WBITS}
"""zlib's window argument for each content encoding (RFC 9110, section 8.4.1)."""
MEMBERS = {b"gzip": 16, b"deflate": 1}
"""How many packed pieces may stand one after another in a body: gzip may have several (RFC 1952, section 2.2), and what
is left over is copied after each.
"""

LEAST_PACKED = 1024
"""Bytes of an answer from which on it is worth packing: less fits into one segment of a connection."""
QUICK = 1 << 16
"""Bytes that are packed within a millisecond."""


async def read_body(headers: dict[bytes, bytes], receive: Receive, limit: int, patience_s: float = PATIENCE_S) -> bytes:
    """The whole request body, unpacked if its `content-encoding` is gzip or deflate.

    Raises:
        RequestTooLarge: it is longer than `limit` bytes, as sent or unpacked; nothing is kept of it.
        InvalidRequest: the client went away in the middle of it, or took too long; or it can't be unpacked.
    """
    try:
        async with asyncio.timeout(patience_s):
            body = await _collect(receive, limit)
    except TimeoutError:
        raise too_slow(patience_s) from None
    encoding = headers.get(b"content-encoding")
    return body if encoding in (None, b"identity") else unpack(body, encoding, limit)


async def _collect(receive: Receive, limit: int) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    if len(body) > limit:
        raise too_large(len(body), limit)
    if message.get("more_body"):
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise too_large(size, limit)
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise InvalidRequest("the client went away before the whole body had come")
    return body


def unpack(body: bytes, encoding: bytes | None, limit: int) -> bytes:
    """The bytes that gzip or deflate made `body` of.

    Raises:
        RequestTooLarge: they are more than `limit`.
        InvalidRequest: it can't be unpacked.
    """
    name = (encoding or b"").strip().lower().removeprefix(b"x-")
    if name not in WINDOW:
        raise InvalidRequest("unknown content-encoding", seen=name.decode("latin-1"), allowed="gzip, deflate")
    unpacked, rest = b"", body
    for _ in range(MEMBERS[name]):
        unpacker = zlib.decompressobj(WINDOW[name])
        try:
            # A small body may unpack to a huge one: stop at the first byte too many.
            unpacked += unpacker.decompress(rest, limit + 1 - len(unpacked))
        except zlib.error as error:
            raise InvalidRequest("the body can't be unpacked", seen=error, allowed="gzip or deflate, whole") from None
        if len(unpacked) > limit:
            raise too_large(len(unpacked), limit)
        if not unpacker.eof:
            raise InvalidRequest("the packed body is truncated")
        rest = unpacker.unused_data
        if not rest:
            return unpacked
    allowed = f"{MEMBERS[name]} packed pieces"
    raise InvalidRequest("bytes are left over after the packed body", seen=len(rest), allowed=allowed)


async def pack(body: bytes, encoding: bytes) -> bytes:
    """What gzip or deflate makes of `body`, at the quickest of zlib's levels."""

    def packed() -> bytes:
        packer = zlib.compressobj(zlib.Z_BEST_SPEED, wbits=WINDOW[encoding])
        return packer.compress(body) + packer.flush()

    return packed() if len(body) <= QUICK else await asyncio.to_thread(packed)


def too_large(size: int, limit: int) -> RequestTooLarge:
    """The error of a body of `size` bytes where `limit` are allowed."""
    return RequestTooLarge(
        "the body is too large", seen=f"{size} bytes", allowed=f"{limit} bytes", remedy="send fewer rows at once"
    )


def too_slow(patience_s: float) -> InvalidRequest:
    """The error of a body that hasn't come within `patience_s` seconds."""
    return InvalidRequest("the body didn't come in time", allowed=f"{patience_s:g} s", remedy="send fewer rows at once")
