"""gRPC's framing in HTTP/1.1: what a call's headers and body mean, and how answers and failures are written.

Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote

import grpc
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from tidepool.serve.body import WINDOW, unpack
from tidepool.serve.grpc import SERVICE, Failure
from tidepool.serve.heads import END, LONGEST_HEAD, fields

NAME = "ModelInfer"
PATH = f"/{SERVICE}/{NAME}".encode()
OPENING = b"POST %b HTTP/1.1\r\n" % PATH
CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})\r\n")
LAST_CHUNK = b"\r\n0\r\n\r\n"
CONTENT_TYPES = (b"application/grpc", b"application/grpc+proto")
TIMEOUT = re.compile(rb"(\d{1,8})([HMSmun])")
UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
FRAME = 5
"""Bytes before a message: whether it is packed, and its length."""
PLAIN = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
"""Characters of `grpc-message` that aren't percent-encoded."""

ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\n%btransfer-encoding: chunked\r\n\r\n"
    b"%x\r\n\0%b%b\r\n0\r\ngrpc-status: 0\r\n\r\n"
)
CLOSE = b"connection: close\r\n"

NOT_GRPC = Failure(grpc.StatusCode.INVALID_ARGUMENT, "the content-type is not application/grpc")
NO_TIMEOUT = Failure(grpc.StatusCode.INTERNAL, "grpc-timeout is not a number of at most 8 digits and a unit")
NO_FRAME = Failure(grpc.StatusCode.INTERNAL, "the call doesn't hold one whole message")
NO_ENCODING = Failure(grpc.StatusCode.INTERNAL, "the message is packed, and grpc-encoding doesn't say how")
NO_MESSAGE = Failure(grpc.StatusCode.INTERNAL, "the message is not a ModelInferRequest")
UNKNOWN_ENCODING = Failure(
    grpc.StatusCode.UNIMPLEMENTED,
    "unknown grpc-encoding",
    (("grpc-accept-encoding", ",".join(["identity", *(name.decode() for name in WINDOW)])),),
)
LATE = Failure(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed before the answer was there")


class Refused(Exception):
    """A call breaks gRPC's rules."""

    def __init__(self, why: Failure) -> None:
        super().__init__(why.details)
        self.why = why


def timeout_s(text: bytes) -> float:
    """Seconds in a `grpc-timeout`.

    Raises:
        Refused: it isn't one.
    """
    match = TIMEOUT.fullmatch(text)
    if match is None:
        raise Refused(NO_TIMEOUT)
    return int(match[1]) * UNITS_S[match[2]]


def unframed(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The one message in `body`, which is packed as `encoding` says, or not at all.

    Raises:
        Refused: there isn't one, or nobody here can unpack it.
        InvalidRequest: it can't be unpacked.
        RequestTooLarge: it is longer than `limit` bytes.
    """
    if len(body) < FRAME or body[0] > 1 or int.from_bytes(body[1:FRAME], "big") != len(body) - FRAME:
        raise Refused(NO_FRAME)
    if not body[0]:
        return body[FRAME:]
    if encoding not in WINDOW:
        raise Refused(NO_ENCODING if encoding in (b"", b"identity") else UNKNOWN_ENCODING)
    return unpack(body[FRAME:], encoding, limit)


def written(outcome: bytes | Failure, keep_alive: bool) -> bytes:
    """The response with a message, or with trailers alone, which HTTP/1.1 has as headers."""
    connection = b"" if keep_alive else CLOSE
    if isinstance(outcome, bytes):
        length = len(outcome)
        return ANSWER % (connection, length + FRAME, length.to_bytes(4, "big"), outcome)
    code: int = outcome.code.value[0]
    said = [("grpc-status", str(code)), ("grpc-message", quote(outcome.details, PLAIN, errors="replace"))]
    lines = [("content-type", "application/grpc"), ("content-length", "0"), *said, *outcome.metadata]
    head = "".join(f"{name}: {value}\r\n" for name, value in lines)
    return b"%b%b%b\r\n" % (STATUS_LINE[415 if outcome is NOT_GRPC else 200], head.encode(), connection)


@lru_cache(maxsize=256)
def head(data: bytes) -> dict[bytes, bytes] | None:
    """The headers in what comes before a plain call's body, up to the empty line, or None if it isn't plain."""
    headers = fields(data.split(b"\r\n")[1:])
    if headers is None or headers.get(b"transfer-encoding") != b"chunked" or b"content-length" in headers:
        return None
    return headers


def plain(data: bytes) -> tuple[dict[bytes, bytes], bytes] | None:
    """Headers and body, if `data` is one call and nothing else, its body in one chunk: most calls are."""
    end = data.find(END, 0, LONGEST_HEAD) if data.startswith(OPENING) else -1
    chunk = CHUNK.match(data, end + len(END)) if end > 0 else None
    if chunk is None:
        return None
    begin, length = chunk.end(), int(chunk[1], 16)
    if len(data) != begin + length + len(LAST_CHUNK) or not length or not data.endswith(LAST_CHUNK):
        return None
    headers = head(data[:end])
    return None if headers is None else (headers, data[begin : begin + length])
