"""What serving asked for lately: the memory behind "take at once, give back after a while"."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

MEMORY_S = 600.0
"""Seconds that are remembered."""


@dataclass(frozen=True, slots=True)
class Demand:
    """Accelerators that all applications together asked for, as steps: (since when, how many), oldest first."""

    steps: tuple[tuple[float, float], ...] = ()

    def then(self, now: float, accelerators: float) -> Demand:
        """The memory with what is asked for now; what ended more than `MEMORY_S` ago is forgotten."""
        if self.steps and self.steps[-1][1] == accelerators:
            return self
        kept = [(start, amount) for start, end, amount in self._spans() if end > now - MEMORY_S]
        return Demand((*kept, (now, accelerators)))

    def peak(self, since: float) -> float:
        """The most that was asked for at any time from `since` on."""
        return max((amount for _, end, amount in self._spans() if end > since), default=0.0)

    def least(self, since: float) -> float:
        """The least that was asked for at any time from `since` on; 0 before the memory begins."""
        if not self.steps or self.steps[0][0] > since:
            return 0.0
        return min(amount for _, end, amount in self._spans() if end > since)

    def idle_s(self, level: float, now: float) -> float:
        """Seconds for which no more than `level` has been asked for; infinite if never more in memory."""
        ends = [end for _, end, amount in self._spans() if amount > level]
        return max(0.0, now - ends[-1]) if ends else math.inf

    def _spans(self) -> Iterator[tuple[float, float, float]]:
        """(start, end, accelerators); the last one goes on."""
        for index, (start, amount) in enumerate(self.steps):
            end = self.steps[index + 1][0] if index + 1 < len(self.steps) else math.inf
            yield start, end, amount
