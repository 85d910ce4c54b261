"""HTTP load from one thread, over plain sockets under epoll.

Closed loop: every connection asks again as soon as it is answered. Open loop: requests are due at a constant rate, and
latencies count from then, whenever a request could really be sent: a server that stalls is charged with all who wait
meanwhile. All figures are of whole answers, in seconds.

The generator shares the machine with the server that it measures, so it must take little: `load_cost.py` says how much.
"""

from __future__ import annotations

import contextlib
import gc
import re
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Address = tuple[str, int]

MOST_CONNECTIONS = 512
"""That the open loop opens before requests wait in the generator itself."""
PATIENCE_S = 10.0
"""Seconds that answers may take after the last request."""
REFUSALS = (429, 503)
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
LAST_CHUNK = b"0\r\n\r\n"
RECEIVED_AT_ONCE = 1 << 18

clock = time.perf_counter


def percentile(values: list[float], share: float) -> float:
    """What `share` of the values stay below; not a number if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass
class Result:
    """What one measurement saw."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    """In the order of the answers."""
    refusals: list[float] = field(default_factory=list)
    """Latencies of answers that said the server has too much to do: 429 and 503."""
    errors: int = 0
    """Any other status than 200, broken connections, and requests never answered."""
    cpu_s: float = 0.0
    """Processor time of the generator."""

    @property
    def refused(self) -> int:
        """Requests that were refused."""
        return len(self.refusals)

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Latency that `share` of the answers stayed below, in seconds."""
        return percentile(self.latencies, share)

    @property
    def cpu_us(self) -> float:
        """Microseconds of the generator's processor a request."""
        return self.cpu_s / max(1, len(self.latencies) + self.refused + self.errors) * 1e6


class _Connection:
    """One keep-alive connection with at most one request in the air."""

    __slots__ = ("due", "fd", "received", "recv", "send", "socket", "unsent")

    def __init__(self, address: Address) -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.fd, self.recv, self.send = self.socket.fileno(), self.socket.recv, self.socket.send
        self.due = 0.0
        """When the request in the air was due; 0 while there is none."""
        self.received, self.unsent = b"", memoryview(b"")

    def close(self) -> None:
        self.socket.close()
        self.fd = -1


class _Wire:
    """Connections over which one request goes out again and again; `follow` gets each one that was answered."""

    def __init__(self, address: Address, request: bytes, result: Result) -> None:
        self._address, self._request, self.result = address, request, result
        self.follow: Callable[[_Connection], None] = lambda connection: None
        self.connections: dict[int, _Connection] = {}
        self._epoll = select.epoll()
        self._length, self._tail = -1, b""
        """The whole length and the end of the last good answer: the next is the same, as the request is."""

    def __enter__(self) -> _Wire:
        gc.disable()
        self._began = time.thread_time()
        return self

    def __exit__(self, *_: object) -> None:
        gc.enable()
        for connection in self.connections.values():
            connection.close()
        self._epoll.close()

    @property
    def cpu_s(self) -> float:
        return time.thread_time() - self._began

    def open(self) -> _Connection:
        connection = _Connection(self._address)
        self.connections[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN)
        return connection

    def send(self, connection: _Connection, due: float) -> None:
        connection.due = due
        try:
            sent = connection.send(self._request)
        except OSError:
            return  # the server closed it: `receive` will see that
        if sent < len(self._request):
            connection.unsent = memoryview(self._request)[sent:]
            self._epoll.modify(connection.fd, select.EPOLLIN | select.EPOLLOUT)

    def receive(self, timeout_s: float) -> None:
        """Take what arrives within `timeout_s`. The common case, a whole answer like the one before, comes first."""
        for fd, event in self._epoll.poll(timeout_s):
            connection = self.connections[fd]
            if event & select.EPOLLOUT:
                self._send_more(connection)
                if event == select.EPOLLOUT:
                    continue
            try:
                data = connection.recv(RECEIVED_AT_ONCE)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if len(data) == self._length and data.endswith(self._tail) and not connection.received:
                self.result.latencies.append(clock() - connection.due)
                self.follow(connection)
            elif data:
                self._receive_part(connection, data)
            else:
                self._lose(connection)

    def wait(self, timeout_s: float) -> None:
        """`receive` with a finer clock: epoll's own time-out is in whole milliseconds."""
        select.select([self._epoll], [], [], max(timeout_s, 0.0))
        self.receive(0)

    def is_asking(self) -> bool:
        return any(connection.due for connection in self.connections.values())

    def _send_more(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            connection.unsent = connection.unsent[connection.send(connection.unsent) :]
        if not connection.unsent:
            self._epoll.modify(connection.fd, select.EPOLLIN)

    def _receive_part(self, connection: _Connection, data: bytes) -> None:
        connection.received = answer = connection.received + data
        head = answer.find(b"\r\n\r\n")
        if head < 0:
            return
        found = CONTENT_LENGTH.search(answer, 0, head)
        if len(answer) < head + 4 + int(found[1]) if found else not answer.endswith(LAST_CHUNK):
            return
        connection.received, status = b"", int(answer[9:12])
        if status == 200:
            self._length, self._tail = len(answer), answer[-16:]
            self.result.latencies.append(clock() - connection.due)
        elif status in REFUSALS:
            self.result.refusals.append(clock() - connection.due)
        else:
            self.result.errors += 1
        self.follow(connection)

    def _lose(self, connection: _Connection) -> None:
        del self.connections[connection.fd]
        connection.close()
        if connection.due:  # else it was idle, and the server may close such
            self.result.errors += 1
            self.follow(self.open())


def closed_loop(address: Address, request: bytes, connections: int, seconds: float) -> Result:
    """Keep `connections` requests in the air for `seconds`; then wait for the last answers, which don't count."""
    result = Result(seconds)
    with _Wire(address, request, result) as wire:
        wire.follow = lambda connection: wire.send(connection, clock())
        for _ in range(connections):
            wire.follow(wire.open())
        end = clock() + seconds
        while clock() < end:
            wire.receive(0.1)
        result.cpu_s, wire.result, wire.follow = wire.cpu_s, Result(0), _rest
        _drain(wire)
    return result


def open_loop(address: Address, request: bytes, rate: float, seconds: float) -> Result:
    """`rate` requests a second, evenly spaced for `seconds`, however long the answers take."""
    result = Result(seconds)
    total, asked = max(1, int(rate * seconds)), 0
    free: list[_Connection] = []
    late: deque[float] = deque()
    with _Wire(address, request, result) as wire:

        def follow(connection: _Connection) -> None:
            connection.due = 0.0
            if late:
                wire.send(connection, late.popleft())
            else:
                free.append(connection)

        def ask(due: float) -> None:
            while free and free[-1].fd < 0:  # closed by the server meanwhile
                free.pop()
            if free:
                wire.send(free.pop(), due)
            elif len(wire.connections) < MOST_CONNECTIONS:
                wire.send(wire.open(), due)
            else:
                late.append(due)

        wire.follow = follow
        start = clock()
        while asked < total:
            due = start + asked / rate
            if due <= clock():
                ask(due)
                asked += 1
            else:
                wire.wait(due - clock())
        _drain(wire)
        result.cpu_s, result.seconds = wire.cpu_s, max(seconds, clock() - start)
    result.errors += total - len(result.latencies) - result.refused - result.errors
    return result


def _rest(connection: _Connection) -> None:
    connection.due = 0.0


def _drain(wire: _Wire) -> None:
    until = clock() + PATIENCE_S
    while wire.is_asking() and clock() < until:
        wire.receive(0.1)


def http_request(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """The bytes of a keep-alive POST."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost"]
    lines += [f"{name}: {value}" for name, value in {**headers, "content-length": str(len(body))}.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
