"""What came of simulated regimes: figures, a table, a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidepool.pool.tide import Tide

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What came of one regime. Seconds; means and percentiles over all jobs that arrived."""

    regime: str
    jobs: int
    queueing_s: float
    """Without any worker, before the first and while parked."""
    queueing_p95_s: float
    completion_s: float
    """From arrival to end."""
    completion_p95_s: float
    unfinished: int
    late: float
    """Share of requests that missed the SLO."""
    used: float
    """Share of accelerator-seconds in training's or serving's hands."""
    resizes: int
    paused: float
    """Share of training's accelerator-seconds spent in pauses."""
    redone: float
    """Share of training's accelerator-seconds spent on work that had been done before."""
    took_s: float
    """What the simulation took."""
    tide: Floats
    """Every ten minutes: seconds, accelerators of training, of serving, requests a second. Shape (rows, 4)."""

    def drawn(self, accelerators: int) -> Tide:
        """The picture of who held what."""
        times, training, serving, rate = self.tide.T.tolist()
        holders = (("serving", serving), ("training", training))
        return Tide(f"{accelerators:,} accelerators: {self.regime}", times, accelerators, holders, rate)


@dataclass(frozen=True)
class Table:
    """One outcome a regime; ratios are against the first."""

    outcomes: tuple[Outcome, ...]

    HEADINGS = (
        "", "queueing mean", "p95", "less by", "completion mean", "p95", "shorter by",
        "SLO missed", "in use", "resizes", "paused", "redone", "unfinished",
    )  # fmt: skip

    def rows(self) -> list[list[str]]:
        """Cells as text, durations in minutes."""
        base = self.outcomes[0]
        return [
            [
                one.regime,
                *(f"{seconds / 60:.1f} min" for seconds in (one.queueing_s, one.queueing_p95_s)),
                f"{base.queueing_s / max(one.queueing_s, 1e-9):.2f}x",
                *(f"{seconds / 60:.1f} min" for seconds in (one.completion_s, one.completion_p95_s)),
                f"{base.completion_s / one.completion_s:.2f}x",
                f"{one.late:.2%}",
                f"{one.used:.1%}",
                f"{one.resizes:,}",
                f"{one.paused:.2%}",
                f"{one.redone:.2%}",
                f"{one.unfinished}",
            ]
            for one in self.outcomes
        ]

    def to_markdown(self) -> str:
        """The table for a page."""
        lines = [self.HEADINGS, ["---"] * len(self.HEADINGS), *self.rows()]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)
