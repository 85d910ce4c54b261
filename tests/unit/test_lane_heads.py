"""Which requests are plain enough for the fast lane."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidepool.serve.heads import END
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


class Parsed:
    """What the parser of uvicorn's own way reads."""

    def __init__(self) -> None:
        self.url, self.headers, self.whole = b"", list[tuple[bytes, bytes]](), False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.whole = True


NAMES = st.sampled_from([b"content-length", b"Content-Length", b"host", b"x-api-key", b"connection", b"expect", b"te"])
VALUES = st.sampled_from([b"0", b"2", b"02", b"keep-alive", b"close", b" 2 ", b"a b", b"\xff", b""]) | st.binary(
    max_size=6
)
LINES = st.tuples(NAMES | st.binary(max_size=6), st.sampled_from([b":", b": ", b":\t", b" :"]), VALUES).map(b"".join)
OPENINGS = st.sampled_from([LINE, LINE.replace(b"/m/", b"/m/versions/3/"), LINE.replace(b"m/", b"m%20/")]) | st.binary()


@given(st.binary(max_size=300))
def test_any_bytes_are_plain_or_not(data: bytes) -> None:
    head = plain(data)
    assert head is None or head.length >= 0


@given(OPENINGS, st.lists(LINES, max_size=4))
@example(LINE, [b"content-length: 2"])
@example(LINE, [b"content-length: 02", b"a: \xe9"])
def test_a_plain_head_means_to_the_parser_what_it_means_to_the_lane(opening: bytes, lines: list[bytes]) -> None:
    data = opening + b"\r\n".join(lines)
    head = plain(data)
    if head is None or END in data:
        return
    seen = Parsed()
    parser = httptools.HttpRequestParser(seen)
    parser.feed_data(data + END + bytes(min(head.length, 1000)))
    assert seen.whole or head.length > 1000
    version = f"/versions/{head.version}" if head.version else ""
    assert (parser.get_method(), seen.url.decode()) == (b"POST", f"{head.prefix}{version}/infer")
    assert {name: value.rstrip() for name, value in seen.headers} == head.headers
    assert parser.should_keep_alive()
