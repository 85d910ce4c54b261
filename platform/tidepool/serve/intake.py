"""The rest of a large body, straight from the socket into the memory that the model reads it from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

LARGE = 64 << 10
"""Bytes that are still to come from which on this pays: below, it costs as much as the copy that it saves."""


def memory(size: int) -> memoryview:
    """Room for `size` bytes, which costs memory only as it is filled."""
    return np.empty(size, np.uint8).data


class Intake(asyncio.BufferedProtocol):
    """Has a connection in place of its own protocol until `room` is full; then calls `full`."""

    def __init__(
        self, transport: asyncio.Transport, owner: asyncio.Protocol, room: memoryview, full: Callable[[], None]
    ) -> None:
        self._transport, self._owner, self._room, self._full = transport, owner, room, full
        transport.set_protocol(self)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """What is still to be filled."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        self._room = self._room[nbytes:]
        if not self._room:
            full = self._full
            del self._full, self._room  # uvloop's transport keeps this object until it gets another of its kind
            self._transport.set_protocol(self._owner)
            full()

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._owner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        """The client doesn't read."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """The client reads again."""
        self._owner.resume_writing()
