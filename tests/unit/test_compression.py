"""Answers in gzip or deflate: for whom, and how long."""

from __future__ import annotations

import asyncio
import gzip
import zlib

import orjson
import pytest

from lanes import Connection, answers, application, double, wait_until
from tidepool.serve.body import LEAST_PACKED, QUICK

pytestmark = pytest.mark.usefixtures("own_models")

UNPACKED = {"gzip": gzip.decompress, "deflate": zlib.decompress}
SHORT, LONG, VERY_LONG = 1, 500, 12_000


def answer_to(rows: int, accepted: str) -> tuple[bytes, bytes]:
    """Head and body."""
    tensor = {"name": "x", "shape": [rows, 2], "datatype": "FP32", "data": [1, 2] * rows}
    body = orjson.dumps({"inputs": [tensor]})
    top = f"POST /v2/models/m/infer HTTP/1.1\r\nx-api-key: good\r\ncontent-length: {len(body)}\r\n{accepted}\r\n"

    async def main() -> tuple[bytes, bytes]:
        connection = Connection(application(double))
        connection.lane.data_received(top.encode() + body)
        await wait_until(lambda: bool(answers(connection.wire.written)))
        return answers(connection.wire.written)[0]

    return asyncio.run(main())


@pytest.mark.parametrize("rows", [LONG, VERY_LONG])
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_who_names_one_encoding_gets_long_answers_in_it(encoding: str, rows: int) -> None:
    _, plain = answer_to(rows, "")
    head, packed = answer_to(rows, f"accept-encoding: {encoding}\r\n")
    assert f"content-encoding: {encoding}".encode() in head
    assert UNPACKED[encoding](packed) == plain
    assert (len(plain) > QUICK) == (rows == VERY_LONG)


@pytest.mark.parametrize(
    ("rows", "accepted"),
    [(LONG, ""), (LONG, "gzip, deflate"), (LONG, "br"), (LONG, "identity"), (SHORT, "gzip")],
)
def test_all_others_get_theirs_at_once(rows: int, accepted: str) -> None:
    head, plain = answer_to(rows, f"accept-encoding: {accepted}\r\n")
    assert b"content-encoding" not in head
    assert orjson.loads(plain)["outputs"][0]["data"] == [2.0, 4.0] * rows
    assert (len(plain) < LEAST_PACKED) == (rows == SHORT)
