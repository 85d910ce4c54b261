"""A run's line to the coordinator: reports go out as they come about, and answers come in as long as the run lasts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

from tidepool.errors import ClusterError
from tidepool.pool.report import Report

log = logging.getLogger(__name__)

Places = Mapping[str, int]
"""Workers by node."""
RETRY_S = 0.5
"""Between two tries to reach a coordinator that doesn't answer."""


class Office(Protocol):
    """The coordinator, as a run sees it. `poll` and `leave` raise `ClusterError` while it doesn't answer."""

    def tell(self, report: Report) -> None:
        """Send a report, without waiting and without knowing whether it arrives: the next poll brings it again."""

    def poll(self, report: Report, seen: Places) -> Places:
        """Where the run should be, once that isn't `seen` any more or after a while; `{}` if nowhere, or not yet."""

    def leave(self, run: str) -> None:
        """The run is over."""


class Line:
    """`heed` is called with the lock held, whenever it has become known where the run should be."""

    def __init__(self, report: Report, office: Office, heed: Callable[[], None]) -> None:
        self.report = report
        self.wanted: Places = {}
        """The last answer."""
        self.lock = threading.Condition()
        """Held while either of them changes; told of new answers."""
        self._office, self._heed = office, heed
        self._over = False

    def open(self) -> None:
        """Begin to ask."""
        threading.Thread(target=self._listen, daemon=True).start()

    def close(self) -> None:
        """The run is over: say so, and ask no more."""
        with self.lock:
            self._over = True
        try:
            self._office.leave(self.report.run)
        except ClusterError as error:
            log.warning("the pool will find out by itself that %s is over: %s", self.report.run, error)

    def tell(self, **news: Any) -> None:
        """Change the report, and send it; the lock is held."""
        self.report = replace(self.report, number=self.report.number + 1, **news)
        self._office.tell(self.report)

    def _listen(self) -> None:
        """Ask where the run should be, over and over, and heed the answers."""
        while True:
            with self.lock:
                report, seen = self.report, self.wanted
                if self._over:
                    return
            try:
                wanted = self._office.poll(report, seen)
            except ClusterError as error:
                log.warning("%s stays as it is: %s", report.run, error)
                time.sleep(RETRY_S)
                continue
            with self.lock:
                if report.number == self.report.number:  # else it is the answer to what was
                    self.wanted = wanted
                    self._heed()
                    self.lock.notify_all()
