"""Connections that stay open between requests, with one timer each in place of one for every request.

uvicorn sets a timer after each answer and cancels it with the next request: that costs as much as reading the request.
"""

from __future__ import annotations

import math

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class KeptAlive(HttpToolsProtocol):
    """uvicorn's protocol, whose timer asks when it fires how long the connection has rested."""

    _rests_since = -math.inf
    """When the last answer was sent, on the event loop's clock."""

    def on_response_complete(self) -> None:
        """An answer was sent: go on with the next request, or wait for one."""
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()
        self._rests_since = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._wait(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        """End the connection, unless a request has come since the timer was set."""
        self.timeout_keep_alive_task = None
        left = self._rests_since + self.timeout_keep_alive - self.loop.time()
        if self.transport.is_closing():
            return
        if self._is_answering():
            self._wait(self.timeout_keep_alive)
        elif left > 0:
            self._wait(left)
        else:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def _is_answering(self) -> bool:
        """Whether a request is in the air, or its answer on the way."""
        return self.flow.write_paused or (self.cycle is not None and not self.cycle.response_complete)

    def _wait(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)
