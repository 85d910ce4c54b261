"""Which requests are plain enough for the fast lane."""

from __future__ import annotations

import pytest

from tidepool.serve.lane import plain

LINE = b"POST /v2/models/m/infer HTTP/1.1\r\n"


@pytest.mark.parametrize(
    "other",
    [
        b"GET /v2/models/m/infer HTTP/1.1\r\ncontent-length: 1",
        b"POST /v2/models/m/infer HTTP/1.0\r\ncontent-length: 1",
        b"POST /v2/models/m/infer?a=b HTTP/1.1\r\ncontent-length: 1",
        b"POST /v2/models/%6d/infer HTTP/1.1\r\ncontent-length: 1",
        LINE + b"host: a",
        LINE + b"content-length: 1\r\ncontent-length: 1",
        LINE + b"content-length: 1\r\nContent-Length: 2",
        LINE + b"content-length: -1",
        LINE + b"content-length: +1",
        LINE + b"content-length: " + b"9" * 5000,
        LINE + b"content-length : 1",
        LINE + b"content-length: 1\r\n folded: 1",
        LINE + b"content-length: 1\r\nno colon",
        LINE + b"content-length: 1\r\na: b\nc: d",
        LINE + b"content-length: 1\r\na: b\x00",
        LINE + b"content-length: 1\r\nTransfer-Encoding: chunked",
        LINE + b"content-length: 1\r\ncontent-encoding: gzip",
        LINE + b"content-length: 1\r\nexpect: 100-continue",
        LINE + b"content-length: 1\r\nupgrade: h2c",
        LINE + b"content-length: 1\r\nconnection: close",
    ],
)
def test_only_plain_requests_are_for_the_lane(other: bytes) -> None:
    assert plain(other) is None


def test_a_plain_head_is_read() -> None:
    line = b"POST /v2/models/a-b.c/versions/12/infer HTTP/1.1\r\n"
    read = plain(line + b"Content-Length: 34\r\nX-Api-Key:  k \r\nConnection: Keep-Alive")
    assert read is not None
    assert (read.prefix, read.version, read.length) == ("/v2/models/a-b.c", "12", 34)
    assert read.headers[b"x-api-key"] == b"k"
