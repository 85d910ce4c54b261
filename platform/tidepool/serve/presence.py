"""Clients that may go away while their answer is made: then it isn't made any more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from tidepool.errors import ClientGone
from tidepool.serve.body import Receive

if TYPE_CHECKING:
    from tidepool.serve.rest import Headers, Send, Stream

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
        answer.cancel()
        gone.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream(send: Send, receive: Receive, headers: Headers, body: Stream) -> None:
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


async def holding(hold: contextlib.AsyncExitStack, body: Stream) -> Stream:
    """The same parts; what is held is let go of after the last one, or when nobody wants more."""
    async with hold, contextlib.aclosing(body):
        async for part in body:
            yield part
