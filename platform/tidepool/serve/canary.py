"""Watches a canary and judges it: promote, roll back, or wait and see more.

Each rule is about a share of requests: those that failed, those slower than the p99 objective (p99 <= x means that at
most 1 % are slower than x), those on which canary and champion disagree. The share's confidence sequence holds at all
times at once, so that one may look after every request and stop when one likes, which a fixed-sample interval doesn't
allow. It is Robbins' beta-binomial mixture: for the true share p of independent requests, B(k+1, n-k+1) / (p^k
(1-p)^(n-k)) is a nonnegative martingale that starts at 1, so that by Ville's inequality it ever reaches 1/alpha with
probability alpha at most (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform, nonparametric,
nonasymptotic confidence sequences", Annals of Statistics 49, 2021).

A canary that turns bad late is hidden by its good past; therefore every window of time is tested anew as well, window i
at level alpha / (2 i (i + 1)), which sums to alpha / 2 over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from tidepool.errors import SpecError
from tidepool.serve.protocol import Tensors

SLOW_SHARE = 0.01
"""What may be slower than the p99 objective."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests that a version answered, and those compared with the champion's answers. Adds up over replicas."""

    answers: int = 0
    errors: int = 0
    slow: int = 0
    """Of the answers, those over `Rules.p99_ms`."""
    compared: int = 0
    disagreed: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))


def astuple(tally: Tally) -> tuple[int, int, int, int, int]:
    """The counts, in order."""
    return tally.answers, tally.errors, tally.slow, tally.compared, tally.disagreed


@dataclass(frozen=True, slots=True)
class Rules:
    """What a canary must keep. Shares in [0, 1]; a rule of None isn't judged."""

    max_error_rate: float | None = 0.01
    p99_ms: float | None = None
    max_disagreement: float | None = None
    min_requests: int = 200
    """Answers before the canary is promoted."""
    min_s: float = 60.0
    """Seconds before the canary is promoted: some failures need time."""
    window_s: float = 60.0
    alpha: float = 0.05
    """The probability, over the whole watch, that a canary that keeps a rule is judged to break it, and of the reverse."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1 or self.window_s <= 0:
            raise SpecError("a canary needs 0 < alpha < 1 and a window", seen=(self.alpha, self.window_s))
