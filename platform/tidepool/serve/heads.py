"""Heads of HTTP/1.1 requests: what is plain is read without a parser."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tidepool.errors import InvalidRequest

END = b"\r\n\r\n"
LONGEST_HEAD = 8192
HEADER = re.compile(rb"([!#$%&'*+.^_`|~\w-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
"""Source: RFC 9112, section 5."""
JSON_LENGTH = b"inference-header-content-length"
"""How many bytes of a body are JSON, where raw tensors follow: the binary tensor extension."""
MOST_DIGITS = 15
"""Of a length in bytes."""


def fields(lines: Sequence[bytes]) -> dict[bytes, bytes] | None:
    """The headers, names in lower case; None unless each is well-formed and there once, and asks for no new connection
    and no other protocol."""
    matches = [HEADER.fullmatch(line) for line in lines]
    headers = {match[1].lower(): match[2].rstrip() for match in matches if match}
    if len(headers) < len(lines) or b"upgrade" in headers or b"expect" in headers:
        return None
    return headers if headers.get(b"connection", b"keep-alive").lower() == b"keep-alive" else None


def is_length(text: bytes) -> bool:
    """Whether it is a number of bytes."""
    return text.isdigit() and len(text) <= MOST_DIGITS


def declared(headers: Mapping[bytes, bytes]) -> int:
    """The length that a body is said to have, or 0."""
    length = headers.get(b"content-length", b"0")
    return int(length) if is_length(length) else 0


def json_length(headers: Mapping[bytes, bytes]) -> int | None:
    """How many bytes of a body are said to be JSON; None of one that is JSON whole.

    Raises:
        InvalidRequest: that is not a number.
    """
    length = headers.get(JSON_LENGTH)
    if length is not None and not is_length(length):
        raise InvalidRequest("Inference-Header-Content-Length is not a number", seen=length.decode("latin-1"))
    return None if length is None else int(length)
