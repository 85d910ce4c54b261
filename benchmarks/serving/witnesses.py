"""Clients that check every answer: the numbers must be those of the version that the answer names."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Mapping

import orjson
from servers import Server
from workloads import Row, holds

PATIENCE_S = 10.0
"""Seconds for one answer."""


class Witnesses:
    """Some connections that ask one after another, each with a pause between two requests, until the block ends."""

    def __init__(self, server: Server, expected: Mapping[str, Row], connections: int, pause_s: float) -> None:
        """`expected`: what each version answers."""
        self._server, self._expected, self._pause_s = server, expected, pause_s
        self._end = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(connections)]
        self.answers, self.mixed = 0, 0
        self.failures: list[str] = []
        self._seen: dict[str, float] = {}

    def __enter__(self) -> Witnesses:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def last_asked(self, version: str) -> float:
        """When a request was sent that this version answered, the last of them, on `time.perf_counter`'s clock."""
        return self._seen.get(version, 0.0)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection(*self._server.address, timeout=PATIENCE_S)
        body, headers = self._server.message.body, dict(self._server.message.headers)
        while not self._end.wait(self._pause_s):
            sent = time.perf_counter()
            try:
                connection.request("POST", self._server.path, body, headers)
                response = connection.getresponse()
                content = response.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            if response.status == 200:
                self._check(orjson.loads(content), sent)
            else:
                self.failures.append(f"{response.status} {content[:200]!r}")
        connection.close()

    def _check(self, answer: dict[str, object], sent: float) -> None:
        self.answers += 1
        version = str(answer["model_version"])
        self._seen[version] = max(sent, self._seen.get(version, 0.0))
        if version not in self._expected or not holds(answer["outputs"], self._expected[version]):
            self.mixed += 1
