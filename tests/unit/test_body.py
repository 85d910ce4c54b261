"""Bodies: packed, and unpacked whole or refused."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import Callable

import pytest

from tidepool.errors import InvalidRequest, RequestTooLarge
from tidepool.serve.body import MEMBERS, QUICK, pack, unpack

BODY = b"the tide comes in and the tide goes out"


def packed(body: bytes, members: int = 1) -> bytes:
    """As gzip has it when a file was appended to again and again."""
    size = -(-len(body) // members)
    return b"".join(gzip.compress(body[at : at + size], mtime=0) for at in range(0, max(1, len(body)), max(1, size)))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        (b"gzip", packed(BODY)),
        (b" GZIP", packed(BODY)),
        (b"x-gzip", packed(BODY)),
        (b"gzip", packed(BODY, members=3)),
        (b"gzip", packed(b"") + packed(BODY)),
        (b"Deflate", zlib.compress(BODY)),
    ],
)
def test_what_was_packed_is_unpacked(encoding: bytes, body: bytes) -> None:
    assert unpack(body, encoding, 1000) == BODY


@pytest.mark.parametrize("size", [0, 1000, QUICK + 1])
@pytest.mark.parametrize(("encoding", "unpacked"), [(b"gzip", gzip.decompress), (b"deflate", zlib.decompress)])
def test_what_is_packed_others_unpack(encoding: bytes, unpacked: Callable[[bytes], bytes], size: int) -> None:
    body = (BODY * (size // len(BODY) + 1))[:size]
    assert unpacked(asyncio.run(pack(body, encoding))) == body


@pytest.mark.parametrize(
    ("encoding", "body", "words"),
    [
        (b"gzip", packed(BODY) + b"more", "can't be unpacked"),
        (b"gzip", packed(BODY, members=3)[:-4], "truncated"),
        (b"gzip", gzip.compress(b"") * (MEMBERS[b"gzip"] + 1), "left over"),
        (b"deflate", zlib.compress(BODY) + b"more", "left over"),
        (b"gzip", b"", "truncated"),
        (b"br", BODY, "content-encoding"),
        (None, BODY, "content-encoding"),
    ],
)
def test_what_is_wrong_with_it_is_said(encoding: bytes | None, body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        unpack(body, encoding, 1000)


def test_the_limit_is_that_of_all_members_together() -> None:
    unpack(packed(BODY, members=3), b"gzip", len(BODY))
    with pytest.raises(RequestTooLarge):
        unpack(packed(BODY, members=3), b"gzip", len(BODY) - 1)
