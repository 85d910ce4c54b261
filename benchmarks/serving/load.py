"""A closed-loop HTTP load generator: N connections, each sends its next request when the answer is there.

One process, one thread, plain sockets under epoll, so that it takes little of the machine from the server it measures.
Latencies are of whole answers, in seconds.
"""

from __future__ import annotations

import selectors
import socket
import time
from dataclasses import dataclass, field


@dataclass
class Result:
    """What one measurement saw."""

    seconds: float
    latencies: list[float] = field(default_factory=list)
    """In the order of the answers."""
    errors: int = 0
    """Answers other than 200, and connections that broke."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Latency that `share` of the answers stayed below, in seconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


class _Connection:
    """One keep-alive connection with at most one request in the air."""

    def __init__(self, host: str, port: int, request: bytes) -> None:
        self._address, self._request = (host, port), request
        self.connect()

    def connect(self) -> None:
        self.socket = socket.create_connection(self._address, timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self) -> None:
        self._received = b""
        self.began = time.perf_counter()
        self.socket.sendall(self._request)

    def receive(self) -> int | None:
        """The status of the answer once it is whole, else None. Raises OSError when the connection broke."""
        chunk = self.socket.recv(1 << 20)
        if not chunk:
            raise OSError("closed by the server")
        self._received += chunk
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return None
        lowered = head.lower()
        at = lowered.find(b"content-length:")
        if at < 0:  # chunked: whole when the last, empty chunk is there
            return int(head[9:12]) if body.endswith(b"0\r\n\r\n") else None
        length = int(lowered[at + 15 :].split(b"\r\n", 1)[0])
        return int(head[9:12]) if len(body) >= length else None


def closed_loop(host: str, port: int, request: bytes, connections: int, seconds: float) -> Result:
    """Keep `connections` requests in the air for `seconds`."""
    selector = selectors.DefaultSelector()
    for _ in range(connections):
        connection = _Connection(host, port, request)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send()
    result = Result(seconds)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for key, _ in selector.select(timeout=0.5):
            connection = key.data
            try:
                status = connection.receive()
            except OSError:
                status = 0
                selector.unregister(connection.socket)
                connection.connect()
                selector.register(connection.socket, selectors.EVENT_READ, connection)
            if status is None:
                continue
            if status == 200:
                result.latencies.append(time.perf_counter() - connection.began)
            else:
                result.errors += 1
            connection.send()
    for key in list(selector.get_map().values()):
        key.data.socket.close()
    selector.close()
    return result


def http_request(path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """The bytes of a keep-alive POST."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += [f"{name}: {value}" for name, value in {**headers, "content-length": str(len(body))}.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
