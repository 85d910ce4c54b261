"""gRPC load from one thread, over plain sockets: what `load` is for HTTP/1.1, so that both cost the machine as little.

A connection has one call in the air. Its head is the same bytes each time, without HPACK's table, and so is its
message; an answer is whole when its stream ends. Sources: RFC 9113, RFC 7541, and gRPC over HTTP/2
(https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import gc
import select
import socket
import struct
import time
from collections.abc import Mapping

from load import RECEIVED_AT_ONCE, Address, Result, clock

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW = 0, 1, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WIDE = 2**31 - 1
"""A flow-control window that no measurement fills."""
INITIAL_WINDOW = 65_535
frame_head = struct.Struct(">HBBBI").unpack_from
"""The length in two parts, kind, flags and stream."""
pack_stream = struct.Struct(">I").pack_into
ROOM_BYTES = 26
"""In which a server tells of new room for a call, before its answer: no reason to wake up."""
PREFIX_BYTES = 5
"""Before a message; a call that fails has none."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def head(address: Address, path: str, metadata: Mapping[str, str]) -> bytes:
    """A call's header block: every field a literal that no table keeps."""
    fields = {":method": "POST", ":scheme": "http", ":path": path, ":authority": f"{address[0]}:{address[1]}"}
    fields |= {"content-type": "application/grpc", "te": "trailers", **metadata}
    return b"".join(b"\x00" + _text(name) + _text(value) for name, value in fields.items())


def _text(text: str) -> bytes:
    raw = text.encode()
    short, rest = min(len(raw), 127), max(0, len(raw) - 127)
    length = bytes([short])
    if short == 127:
        while rest > 127:
            length += bytes([rest % 128 + 128])
            rest //= 128
        length += bytes([rest])
    return length + raw


class _Connection:
    """One connection with one call in the air."""

    def __init__(self, address: Address, block: bytes, message: bytes) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = b"\x00" + struct.pack(">I", len(message)) + message
        opening = frame(HEADERS, END_HEADERS, 0, block)
        self._request, self._at = bytearray(opening + frame(DATA, END_STREAM, 0, data)), len(opening)
        """A call, and where its second frame begins; each has the number of its stream."""
        self._size = len(data)
        if self._size < INITIAL_WINDOW // 4:  # so that there is always room, and nobody waits for word of it
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, ROOM_BYTES + 1)
        self._stream, self._room, self._waits = -1, INITIAL_WINDOW, False
        self.due, self._received, self._said = 0.0, b"", 0
        self._length, self._tail, self._gain = -1, b"", 0
        """Of the last answer that came at once its length, its end and the room that came with it: the next one is the
        same, as the call is."""
        settings = frame(SETTINGS, 0, 0, struct.pack(">HI", 4, WIDE))
        self.socket.sendall(PREFACE + settings + frame(WINDOW, 0, 0, struct.pack(">I", WIDE - INITIAL_WINDOW)))

    def call(self) -> None:
        """Send a call, as soon as the server has room for it."""
        self.due = clock()
        self._waits = self._room < self._size
        if not self._waits:
            self._send()

    def _send(self) -> None:
        self._stream += 2
        self._room, self._said = self._room - self._size, 0
        for begin in (0, self._at):
            pack_stream(self._request, begin + 5, self._stream)
        self.socket.sendall(self._request)

    def receive(self) -> bool | None:
        """Take what has come: whether the call was answered with a message, or None as long as it isn't.

        Raises:
            ConnectionError: the server ended the connection.
        """
        data = self.socket.recv(RECEIVED_AT_ONCE)
        if not data:
            raise ConnectionError("the server ended the connection")
        if len(data) == self._length and data.endswith(self._tail) and not self._received:
            self._room += self._gain
            return True
        came_at_once, room = not (self._received or self._said), self._room
        data = self._received + data
        answered, at, size = None, 0, len(data)
        while at + 9 <= size:
            high, low, kind, flags, stream = frame_head(data, at)
            length = high << 8 | low
            if at + 9 + length > size:
                break
            at += 9 + length
            if stream == self._stream and kind <= HEADERS:
                self._said += length if kind == DATA else 0
                answered = self._said > PREFIX_BYTES if flags & END_STREAM else None
            elif stream == 0:
                self._control(kind, flags, data[at - length : at])
        self._received = data[at:]
        if answered and came_at_once:
            self._length, self._tail, self._gain = size, data[-16:], self._room - room
        return answered

    def _control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.socket.sendall(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == WINDOW:
            self._room += int.from_bytes(payload)
            if self._waits and self._room >= self._size:
                self._waits = False
                self._send()


def closed_loop(
    address: Address, path: str, message: bytes, metadata: Mapping[str, str], connections: int, seconds: float
) -> Result:
    """Keep `connections` calls in the air for `seconds`."""
    result = Result(seconds)
    block, poller = head(address, path, metadata), select.epoll()
    opened = [_Connection(address, block, message) for _ in range(connections)]
    by_fd = {connection.socket.fileno(): connection for connection in opened}
    gc.disable()
    began, end = time.thread_time(), clock() + seconds
    try:
        for fd, connection in by_fd.items():
            poller.register(fd, select.EPOLLIN)
            connection.call()
        while clock() < end:
            for fd, _ in poller.poll(0.1):
                connection = by_fd[fd]
                answered = connection.receive()
                if answered is None:
                    continue
                if answered:
                    result.latencies.append(clock() - connection.due)
                else:
                    result.errors += 1
                connection.call()
        result.cpu_s = time.thread_time() - began
    finally:
        gc.enable()
        poller.close()
        for connection in opened:
            connection.socket.close()
    return result
