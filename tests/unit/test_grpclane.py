"""Calls to infer in a replica's HTTP server: any bytes in, an answer by gRPC's rules or a closed connection out."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from calls import MESSAGE, Response, call, frame, infer, is_http
from lanes import LIMIT, Connection, Slow, application, double, wait_until
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.framing import PATH
from tidepool.serve.protocol import Tensors

pytestmark = pytest.mark.usefixtures("own_models")

OK, INTERNAL = "0", "13"


def ask(data: bytes) -> Response:
    """What is said to `data` at once."""
    seen: list[Response] = []

    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received(data)
        assert connection.app.in_air == 0
        seen.append(Response(connection.wire.written))

    asyncio.run(main())
    (response,) = seen
    assert response.whole == 1
    return response


@pytest.mark.parametrize("chunk", [None, 7, 1000])
def test_a_call_is_answered_with_a_message_and_trailers(chunk: int | None) -> None:
    response = ask(call(frame(MESSAGE), chunk))
    assert (response.http, response.status, response.answer) == (200, OK, [2.0, 4.0])
    assert response.headers["content-type"] == "application/grpc"


@pytest.mark.parametrize("size", [1, 10, 100])
def test_a_call_in_pieces_is_the_same_call(size: int) -> None:
    async def main() -> None:
        connection, data = Connection(application(double)), infer()
        for at in range(0, len(data), size):
            assert connection.wire.written == b""
            connection.lane.data_received(data[at : at + size])
        assert Response(connection.wire.written).answer == [2.0, 4.0]

    asyncio.run(main())


def test_calls_and_requests_take_turns_on_a_connection() -> None:
    async def main() -> None:
        connection = Connection(application(double))
        for count in range(1, 4):
            connection.lane.data_received(infer())
            connection.lane.data_received(b"GET /docs HTTP/1.1\r\nhost: here\r\n\r\n")
            await wait_until(lambda count=count: connection.wire.written.count(b"detour") == count)  # type: ignore[misc]
        response = Response(connection.wire.written)
        assert (response.whole, response.body.count(b"detour")) == (6, 3)

    asyncio.run(main())


@pytest.mark.parametrize("packed", [gzip.compress(MESSAGE), zlib.compress(MESSAGE)])
def test_a_packed_message_is_unpacked(packed: bytes) -> None:
    encoding = "gzip" if packed[:2] == b"\x1f\x8b" else "deflate"
    assert ask(call(frame(packed, packed=True), 1000, grpc_encoding=encoding)).answer == [2.0, 4.0]


@pytest.mark.parametrize("key", [{"x_api_key": "good", "authorization": ""}, {"authorization": "Bearer good"}])
def test_a_key_comes_in_either_header(key: dict[str, str]) -> None:
    assert ask(infer(**key)).status == OK


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (infer(authorization="Bearer nobody"), "UNAUTHENTICATED", "not known"),
        (infer(authorization=""), "UNAUTHENTICATED", "is needed"),
        (infer(application="other"), "UNAVAILABLE", "no replica of this model"),
        (infer(application=""), "UNAVAILABLE", "no replica of this model"),
        (call(frame(pb.ModelInferRequest(model_name="é").SerializeToString())), "NOT_FOUND", "Seen: é."),
        (call(frame(MESSAGE + b"\x12\x017")), "NOT_FOUND", "version 7"),
        (call(frame(pb.ModelInferRequest(model_name="m").SerializeToString())), "INVALID_ARGUMENT", "input"),
        (infer(content_type="application/grpc+proto; a=b"), "OK", ""),
        (infer(grpc_timeout="99999999H"), "OK", ""),
        (infer(grpc_timeout="1"), "INTERNAL", "grpc-timeout"),
        (infer(grpc_encoding="snappy"), "OK", ""),
        (call(frame(MESSAGE, packed=True), grpc_encoding="snappy"), "UNIMPLEMENTED", "unknown grpc-encoding"),
        (call(frame(MESSAGE, packed=True)), "INTERNAL", "doesn't say how"),
        (call(frame(MESSAGE, packed=True), grpc_encoding="gzip"), "INVALID_ARGUMENT", "can't be unpacked"),
        (call(b""), "INTERNAL", "one whole message"),
        (call(frame(MESSAGE)[:-1]), "INTERNAL", "one whole message"),
        (call(frame(MESSAGE) * 2), "INTERNAL", "one whole message"),
        (call(b"\2" + frame(MESSAGE)[1:]), "INTERNAL", "one whole message"),
        (call(frame(b"\xff" * 9)), "INTERNAL", "not a ModelInferRequest"),
        (call(frame(bytes(LIMIT + 1))), "RESOURCE_EXHAUSTED", f"{LIMIT} bytes"),
        (call(frame(bytes(LIMIT + 1)), 5000), "RESOURCE_EXHAUSTED", f"{LIMIT} bytes"),
        (call(frame(gzip.compress(bytes(LIMIT + 1)), True), grpc_encoding="gzip"), "RESOURCE_EXHAUSTED", "bytes"),
    ],
)
def test_what_is_wrong_with_a_call_is_said_by_grpcs_rules(data: bytes, code: str, words: str) -> None:
    response = ask(data)
    assert (response.http, response.status) == (200, str(grpc.StatusCode[code].value[0]))
    assert words in response.details


def test_who_packs_unlike_anybody_is_told_what_can_be_unpacked() -> None:
    response = ask(call(frame(MESSAGE, packed=True), grpc_encoding="snappy"))
    assert response.headers["grpc-accept-encoding"] == "identity,gzip,deflate"


def test_what_is_not_grpc_is_an_unsupported_media_type() -> None:
    assert ask(infer(content_type="application/grpc-web")).http == 415


@pytest.mark.parametrize(
    "opening", [b"GET " + PATH, b"POST " + PATH + b"?a=b", b"POST " + PATH[:-1], b"POST /v2" + PATH]
)
def test_other_paths_and_methods_go_uvicorns_way(opening: bytes) -> None:
    async def main() -> None:
        connection = Connection(application(double))
        connection.lane.data_received(call(frame(MESSAGE), opening=opening))
        await wait_until(lambda: connection.wire.written.endswith(b"detour"))

    asyncio.run(main())


def test_a_full_replica_says_when_to_come_back() -> None:
    async def main() -> None:
        app = application(double)
        app.in_air = 4
        connection = Connection(app)
        connection.lane.data_received(infer())
        response = Response(connection.wire.written)
        assert (response.status, response.headers["retry-after"]) == ("8", "1")

    asyncio.run(main())


def test_a_model_that_fails_says_so_without_its_insides() -> None:
    def fail(_: Tensors) -> Tensors:
        raise ZeroDivisionError("secret")

    async def main() -> None:
        connection = Connection(application(fail))
        connection.lane.data_received(infer())
        await wait_until(lambda: connection.wire.written != b"")
        response = Response(connection.wire.written)
        assert (response.status, response.details) == (INTERNAL, "the model failed: ZeroDivisionError")

    asyncio.run(main())


@pytest.mark.parametrize("key", ["nobody", "good"])
def test_an_answer_may_come_before_the_end_of_a_call(key: str) -> None:
    async def main() -> None:
        connection, body = Connection(application(double)), frame(bytes(2 * LIMIT))
        data = call(body, 5000, authorization=f"Bearer {key}")
        connection.lane.data_received(data[: LIMIT + 20_000])
        assert Response(connection.wire.written).whole == 1
        connection.lane.data_received(data[LIMIT + 20_000 :] + infer())
        response = Response(connection.wire.written)
        assert (response.whole, response.answer) == (2, [2.0, 4.0])

    asyncio.run(main())


def test_a_call_behind_one_that_waits_ends_the_connection() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(infer() * 2)
        assert connection.wire.closed
        connection.lane.connection_lost(None)
        slow.go_on.set()
        await wait_until(lambda: not connection.lane.tasks)
        assert (connection.app.in_air, connection.wire.written) == (0, b"")

    asyncio.run(main())


def test_a_request_behind_a_call_waits_for_it() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(infer() + b"GET /docs HTTP/1.1\r\nhost: here\r\n\r\n")
        assert connection.wire.written == b""
        slow.go_on.set()
        await wait_until(lambda: connection.wire.written.endswith(b"detour"))
        assert Response(connection.wire.written).whole == 2

    asyncio.run(main())


def test_the_last_answer_of_a_connection_says_so() -> None:
    async def main() -> None:
        slow = Slow()
        connection = Connection(application(slow, inline_s=0.0))
        connection.lane.data_received(infer())
        connection.lane.shutdown()
        assert not connection.wire.closed
        slow.go_on.set()
        await wait_until(lambda: connection.wire.closed)
        response = Response(connection.wire.written)
        assert (response.answer, response.headers["connection"]) == ([2.0, 4.0], "close")

    asyncio.run(main())


CUTS = st.lists(st.integers(0, 400), max_size=4)
PIECES = st.sampled_from([infer(), call(frame(MESSAGE)), call(frame(MESSAGE)[:9]), b"5\r\n", b"0\r\n\r\n", b"\r\n"])


@given(st.lists(PIECES | st.binary(max_size=30), max_size=4).map(b"".join), CUTS)
@example(infer(upgrade="h2c", connection="upgrade"), [])
@example(infer(expect="100-continue"), [40])
@example(infer(content_length="3"), [])
def test_any_bytes_get_an_answer_or_a_closed_connection(data: bytes, cuts: list[int]) -> None:
    async def main() -> None:
        connection, begin = Connection(application(double)), 0
        for end in [*sorted(cuts), len(data)]:
            if connection.wire.closed:
                break
            connection.lane.data_received(data[begin : max(begin, end)])
            begin = max(begin, end)
        connection.wire.closed = True
        connection.lane.connection_lost(None)
        await wait_until(lambda: not connection.lane.tasks)
        assert connection.app.in_air == 0
        # uvicorn's parser would take an error of ours for one in the bytes.
        assert b"Invalid HTTP request" not in connection.wire.written or not is_http(data)

    asyncio.run(main())


@given(st.binary(max_size=200) | st.binary(max_size=60).map(frame))
def test_any_body_is_a_call_that_is_answered(body: bytes) -> None:
    assert ask(call(body, 50)).status in {str(code.value[0]) for code in grpc.StatusCode} - {"2"}
