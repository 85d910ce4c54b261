"""A server under measurement: where it answers, what it is asked, which processes are its own."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx
import psutil
from environments import Absent
from load import Address, http_request
from workloads import Message, Row, holds

from tidepool.cluster import processes

PATIENCE_S = 90.0
"""Seconds that a server may take to start."""
IDLE_PERCENT, LOOK_S, LONGEST_REST_S = 15, 3.0, 30.0
"""Of the machine's processor time; how long it is looked at; and how long at most it is given to come down to that."""


@dataclass(frozen=True)
class Server:
    """A server on this machine, and the one request that it is sent."""

    port: int
    path: str
    message: Message
    mark: str
    """Marker in the environment of its processes, as `tidepool.cluster.processes` wants it."""

    @property
    def address(self) -> Address:
        """Where it listens."""
        return "127.0.0.1", self.port

    @property
    def request(self) -> bytes:
        """The request as it goes over the wire."""
        return http_request(self.path, self.message.body, self.message.headers)

    def memory_mb(self) -> float:
        """Proportional set size of all its processes, in megabytes: what several share is counted once."""
        total = 0
        for process in processes.members(self.mark):
            with contextlib.suppress(psutil.Error):  # it has ended meanwhile
                total += process.memory_full_info().pss
        return total / 1e6

    def await_answer(self, expected: Row, check: Callable[[], None] = lambda: None) -> None:
        """Wait until it answers its request with the numbers expected.

        Raises:
            Absent: it doesn't, or `check` says why it never will.
        """
        until, seen = time.monotonic() + PATIENCE_S, "nothing"
        url, headers = f"http://127.0.0.1:{self.port}{self.path}", dict(self.message.headers)
        while time.monotonic() < until:
            check()
            try:
                response = httpx.post(url, content=self.message.body, headers=headers, timeout=30)
                if response.status_code == 200 and holds(response.json(), expected):
                    return
                seen = f"{response.status_code} {response.text[:200]}"
            except httpx.TransportError as error:
                seen = str(error)
            time.sleep(0.1)
        raise Absent(f"no answer, or not the one expected: {seen}")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def rest() -> None:
    """Until the machine has nothing to do: what is left to be done after a start or a deployment must not count."""
    until = time.monotonic() + LONGEST_REST_S
    while psutil.cpu_percent(LOOK_S) > IDLE_PERCENT and time.monotonic() < until:
        pass
