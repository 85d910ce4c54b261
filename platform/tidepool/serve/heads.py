"""Heads of HTTP/1.1 requests, for the lanes that read what is plain without a parser."""

from __future__ import annotations

import re
from collections.abc import Sequence

END = b"\r\n\r\n"
LONGEST_HEAD = 8192
HEADER = re.compile(rb"([!#$%&'*+.^_`|~\w-]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
"""Source: RFC 9112, section 5."""


def fields(lines: Sequence[bytes]) -> dict[bytes, bytes] | None:
    """The headers, names in lower case; None unless each is well-formed and there once, and asks for no new connection
    and no other protocol."""
    matches = [HEADER.fullmatch(line) for line in lines]
    headers = {match[1].lower(): match[2].rstrip() for match in matches if match}
    if len(headers) < len(lines) or b"upgrade" in headers or b"expect" in headers:
        return None
    return headers if headers.get(b"connection", b"keep-alive").lower() == b"keep-alive" else None
