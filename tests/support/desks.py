"""A coordinator's desk for tests of those who call there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

from tidepool.errors import ClusterError
from tidepool.pool.report import Report


class Desk:
    """A coordinator that says what the test says, and writes down what it hears."""

    def __init__(self) -> None:
        self.wanted: Mapping[str, int] = {}
        self.reports: list[Report] = []
        self.left: list[str] = []
        self.broken = False
        self.news = threading.Condition()

    def want(self, **places: int) -> None:
        with self.news:
            self.wanted = places
            self.news.notify_all()

    def tell(self, report: Report) -> None:
        with self.news:
            self.reports.append(report)
            self.news.notify_all()

    def poll(self, report: Report, seen: Mapping[str, int]) -> Mapping[str, int]:
        with self.news:
            if self.broken:
                raise ClusterError("nobody there")
            self.news.wait_for(lambda: self.wanted != seen, timeout=0.05)
            return self.wanted

    def leave(self, run: str) -> None:
        self.left.append(run)

    def hears(self, what: Callable[[Report], bool]) -> Report:
        """The first report of which it is true."""
        with self.news:
            assert self.news.wait_for(lambda: bool(self.reports) and what(self.reports[-1]), timeout=30), self.reports
            return self.reports[-1]

    def hears_of(self, places: Mapping[str, int], training: bool = True) -> Report:
        """The first report of these workers."""
        return self.hears(lambda report: (report.places, report.training) == (places, training))
