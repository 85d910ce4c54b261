"""Clients that may go away while their answer is made: then it isn't made any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from tidepool.errors import ClientGone
from tidepool.serve.body import Receive

if TYPE_CHECKING:
    from tidepool.serve.rest import Headers, Send

T = TypeVar("T")


async def unless_gone(answering: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The answer, unless the client goes away first: then its request gives up its place.

    Raises:
        ClientGone: it went away.
    """
    answer, gone = asyncio.ensure_future(answering), asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({answer, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientGone("the client went away before its answer was there")
        return answer.result()
    finally:
        gone.cancel()
        if answer.cancel():
            await asyncio.wait({answer})  # until it has let go of what it holds


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream(send: Send, receive: Receive, headers: Headers, body: Held) -> None:
    """Send a response as it comes, until the client goes away."""
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        async with contextlib.aclosing(body):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            async for part in body:
                if gone.done():
                    return
                await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
    finally:
        gone.cancel()


class Held:
    """A body of which each part needs what is held; that is let go of when it is closed.

    No generator: where the client goes before the first part, closing one that hasn't begun does nothing.
    """

    def __init__(self, hold: contextlib.AsyncExitStack, parts: AsyncIterator[bytes]) -> None:
        self._hold, self._parts = hold, parts

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._parts

    async def aclose(self) -> None:
        """Nobody wants more."""
        await self._hold.aclose()
