"""The keys that an identity provider publishes: fetched when a replica starts and then in the background.

A token signed with a key that isn't known has them fetched anew, at most every `SOONEST_S`. What can't be fetched is
logged, and the keys known stay good.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from tidepool.errors import SpecError, StorageError
from tidepool.serve.tokens import Tokens

log = logging.getLogger(__name__)

REFRESH_S = 300.0
SOONEST_S = 10.0
FETCH_S = 5.0
"""The provider has so many seconds to answer."""
LOCAL = ("localhost", "127.0.0.1", "::1")


def fetch(source: str) -> Any:
    """The JSON at a URL or in a file.

    Raises:
        StorageError: it can't be had.
        SpecError: it would come over a network without TLS, where others could put in keys of their own.
    """
    import httpx

    url = urlsplit(source)
    if url.scheme == "http" and url.hostname not in LOCAL:
        raise SpecError("the issuer's keys have to come over TLS", seen=source, allowed="https://, or a file")
    try:
        if url.scheme in ("http", "https"):
            return orjson.loads(httpx.get(source, timeout=FETCH_S).raise_for_status().content)
        return orjson.loads(Path(source).read_bytes())
    except (httpx.HTTPError, OSError, ValueError) as error:
        raise StorageError("the issuer's keys can't be had", seen=f"{source}: {error}") from error


async def refresh(tokens: Tokens, source: str, changed: Callable[[], None]) -> None:
    """Fetch the keys once; `changed` is called if some came or went.

    Raises:
        SpecError: as `fetch`.
    """
    tokens.wanted.clear()
    try:
        if tokens.replace(await asyncio.to_thread(fetch, source)):
            changed()
    except (StorageError, ValueError) as error:
        log.warning("the issuer's keys stay as they were: %s", error)


async def follow(
    tokens: Tokens,
    source: str,
    changed: Callable[[], None],
    every_s: float = REFRESH_S,
    soonest_s: float = SOONEST_S,
) -> None:
    """Fetch the keys for ever: every `every_s`; `soonest_s` after the last time if there are none, or one is wanted."""
    while True:
        await asyncio.sleep(soonest_s)
        if tokens.known:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(tokens.wanted.wait(), every_s - soonest_s)
        await refresh(tokens, source, changed)
