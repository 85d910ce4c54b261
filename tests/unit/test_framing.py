"""gRPC in HTTP/1.1: any bytes mean something or are refused, and what is said arrives."""

from __future__ import annotations

import contextlib
import gzip

import grpc
import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calls import Response, frame, infer
from tidepool.errors import InvalidRequest, RequestTooLarge
from tidepool.serve.framing import PATH, Refused, plain, timeout_s, unframed, written
from tidepool.serve.grpc import Failure


@given(st.lists(st.integers(0, 255).map(lambda byte: bytes([byte])), max_size=3), st.integers(0, 420))
@example([], 0)
@example([b"0"], 300)
def test_a_plain_call_means_to_the_parser_what_it_means_to_the_lane(change: list[bytes], at: int) -> None:
    data = infer()
    data = data[:at] + b"".join(change) + data[at + len(change) :]
    if (read := plain(data)) is None:
        assert change
        return
    seen = Request(data)
    assert (seen.whole, seen.url, seen.body, dict(seen.headers)) == (1, PATH, read[1], read[0])
    assert len(seen.headers) == len(read[0])
    assert seen.goes_on


class Request:
    """What the parser reads."""

    def __init__(self, data: bytes) -> None:
        self.url, self.headers, self.body, self.whole = b"", list[tuple[bytes, bytes]](), b"", 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.goes_on = parser.should_keep_alive() and not parser.should_upgrade()

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip()))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.whole += 1


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: frame(gzip.compress(data), packed=True)))
def test_a_body_is_one_message_or_refused(body: bytes) -> None:
    try:
        message = unframed(body, b"gzip", 50)
    except (Refused, InvalidRequest, RequestTooLarge):
        return
    assert (body == frame(message)) if not body[0] else (gzip.decompress(body[5:])[:50] == message)


@given(st.text(max_size=100))
def test_any_details_arrive_in_a_header(details: str) -> None:
    response = Response(written(Failure(grpc.StatusCode.NOT_FOUND, details), keep_alive=True))
    assert response.status == "5"
    assert response.details.strip(" ") == details.strip(" ")


@pytest.mark.parametrize(("text", "seconds"), [(b"2H", 7200), (b"3M", 180), (b"4S", 4), (b"5m", 5e-3), (b"0n", 0)])
def test_a_timeout_has_a_unit(text: bytes, seconds: float) -> None:
    assert timeout_s(text) == pytest.approx(seconds)


@given(st.binary(max_size=12))
@example(b"123456789S")
def test_any_timeout_is_one_or_refused(text: bytes) -> None:
    with contextlib.suppress(Refused):
        assert timeout_s(text) >= 0
