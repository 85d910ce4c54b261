"""Watches a canary and judges it: promote, roll back, or wait and see more.

Each rule is about a share of requests: those that failed, those slower than the p99 objective (p99 <= x means that at
most 1 % are slower than x), those on which canary and champion disagree. The share's confidence sequence holds at all
times at once, so that one may look after every request and stop when one likes, which an interval for a fixed number of
requests doesn't allow. It is Robbins' mixture: for the true share p of independent requests, k of n,
B(k+1, n-k+1) / (p^k (1-p)^(n-k)) is a nonnegative martingale that starts at 1, so that by Ville's inequality it ever
reaches 1/alpha with a probability of alpha at most (Robbins 1970; Howard, Ramdas, McAuliffe and Sekhon, "Time-uniform,
nonparametric, nonasymptotic confidence sequences", Annals of Statistics 49, 2021).

A canary that turns bad late is hidden by its good past. Each window of time is therefore tested anew as well: half of
alpha is for the whole watch, and alpha / (2 i (i + 1)) for window i, which sums to the other half.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from tidepool.errors import SpecError
from tidepool.serve.protocol import Tensors

SLOW_SHARE = 0.01
"""What may be slower than the p99 objective."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a canary must keep: shares over 0 and under 1. A rule of None isn't judged."""

    max_error_rate: float | None = 0.01
    p99_ms: float | None = None
    max_disagreement: float | None = None
    min_requests: int = 200
    """Answers before it is promoted."""
    min_s: float = 60.0
    """Seconds before it is promoted: some failures need time."""
    window_s: float = 60.0
    alpha: float = 0.05
    """The probability, for each rule and the whole watch, of judging wrongly that it is broken, or that it is kept."""

    def __post_init__(self) -> None:
        shares = [share for share in (self.max_error_rate, self.max_disagreement, self.alpha) if share is not None]
        if not all(0 < share < 1 for share in shares) or self.window_s <= 0 or (self.p99_ms or 1) <= 0:
            raise SpecError("a canary's rules are not valid", seen=self, allowed="shares over 0 and under 1")


@dataclass(slots=True)
class Tally:
    """Counts of the canary's requests."""

    answers: int = 0
    errors: int = 0
    timed: int = 0
    """Answers whose time says something: not of texts, which take as long as they are."""
    slow: int = 0
    """Those over `Rules.p99_ms`."""
    compared: int = 0
    disagreed: int = 0

    def since(self, earlier: Tally) -> Tally:
        """What was counted since an earlier state of the same tally."""
        before = astuple(earlier)
        return Tally(*(now - then for now, then in zip(astuple(self), before, strict=True)))

    def add(self, other: Tally) -> None:
        """Add another's counts: of another replica, or of one more request."""
        self.answers += other.answers
        self.errors += other.errors
        self.timed += other.timed
        self.slow += other.slow
        self.compared += other.compared
        self.disagreed += other.disagreed


class Watch:
    """What was seen of a canary since `began`, in seconds since the epoch: in all, and in the present window."""

    def __init__(self, began: float, window_s: float) -> None:
        self.began, self.window_s = began, window_s
        self.total, self.recent = Tally(), Tally()
        self.window = 1

    def see(self, tally: Tally, now: float) -> None:
        """Count what was seen."""
        window = 1 + int((now - self.began) / self.window_s)
        if window > self.window:
            self.window, self.recent = window, Tally()
        self.total.add(tally)
        self.recent.add(tally)

    def merge(self, other: Watch) -> None:
        """Add what another replica saw of the same canary."""
        self.total.add(other.total)
        if other.window > self.window:
            self.window, self.recent = other.window, Tally()
        if other.window == self.window:
            self.recent.add(other.recent)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one rule rests on: `low` to `high` holds the true share, whenever one looks."""

    rule: str
    seen: int
    of: int
    low: float
    high: float
    allowed: float
    window: int | None
    """The window it is about; None for the whole watch."""

    def __str__(self) -> str:
        where = "" if self.window is None else f" in window {self.window}"
        return f"{self.rule} {self.seen}/{self.of}{where}: {self.low:.4f} to {self.high:.4f}, allowed {self.allowed:g}"


class Decision(StrEnum):
    """What to do with a canary."""

    PROMOTE = "promote"
    ROLLBACK = "rollback"
    WAIT = "wait"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A decision, why, and all that it rests on."""

    decision: Decision
    reason: str
    evidence: tuple[Evidence, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form, for the log of decisions."""
        return asdict(self)


def judge(watch: Watch, rules: Rules, now: float) -> Verdict:
    """Promote when every rule is surely kept, roll back when one is surely broken, wait otherwise."""
    whole = [_weigh(rule, watch.total, rules.alpha / 2, None) for rule in _rules(rules)]
    level = rules.alpha / (2 * watch.window * (watch.window + 1))
    recent = [_weigh(rule, watch.recent, level, watch.window) for rule in _rules(rules)]
    evidence = (*whole, *recent)
    broken = [one for one in evidence if one.low > one.allowed]
    if broken:
        return Verdict(Decision.ROLLBACK, "broken: " + "; ".join(map(str, broken)), evidence)
    unsure = [one for one in whole if one.high > one.allowed]
    if unsure:
        return Verdict(Decision.WAIT, "not sure yet: " + "; ".join(map(str, unsure)), evidence)
    if watch.total.answers < rules.min_requests or now - watch.began < rules.min_s:
        so_far = f"{watch.total.answers} of {rules.min_requests} requests, {now - watch.began:.0f} of {rules.min_s:g} s"
        return Verdict(Decision.WAIT, f"too early: {so_far}", evidence)
    return Verdict(Decision.PROMOTE, "; ".join(["every rule is kept", *map(str, whole)]), evidence)


def confidence(seen: int, of: int, alpha: float) -> tuple[float, float]:
    """Shares that k of n can't rule out at level `alpha`, at any time: where the martingale is under 1/alpha."""
    if of == 0:
        return 0.0, 1.0
    mixture = math.lgamma(seen + 1) + math.lgamma(of - seen + 1) - math.lgamma(of + 2)

    def possible(share: float) -> bool:
        return mixture - seen * math.log(share) - (of - seen) * math.log1p(-share) < -math.log(alpha)

    middle = min(max(seen / of, 1e-12), 1 - 1e-12)
    low = 0.0 if seen == 0 else _edge(1e-12, middle, possible)
    high = 1.0 if seen == of else _edge(1 - 1e-12, middle, possible)
    return low, high


def disagree(one: Tensors, other: Tensors, tolerance: float, names: Iterable[str] | None = None) -> bool:
    """Whether two answers to the same request differ: floats by more than `tolerance`, anything else at all."""
    for name in one if names is None else names:
        mine, its = one[name], other[name]
        if mine.shape != its.shape:
            return True
        if mine.dtype.kind == "f":
            if not np.allclose(mine, its, rtol=0.0, atol=tolerance, equal_nan=True):
                return True
        elif not np.array_equal(mine, its):
            return True
    return False


def _rules(rules: Rules) -> list[tuple[str, str, str, float]]:
    """Each rule judged: its name, what it counts, of what, and the share allowed."""
    judged: list[tuple[str, str, str, float | None]] = [
        ("error rate", "errors", "answers", rules.max_error_rate),
        (f"slower than {rules.p99_ms} ms", "slow", "timed", None if rules.p99_ms is None else SLOW_SHARE),
        ("disagreement", "disagreed", "compared", rules.max_disagreement),
    ]
    return [(name, seen, of, allowed) for name, seen, of, allowed in judged if allowed is not None]


def _weigh(rule: tuple[str, str, str, float], tally: Tally, alpha: float, window: int | None) -> Evidence:
    name, counted, base, allowed = rule
    seen, of = getattr(tally, counted), getattr(tally, base)
    return Evidence(name, seen, of, *confidence(seen, of, alpha), allowed, window)


def _edge(outside: float, inside: float, possible: Any) -> float:
    """Between a share that is ruled out and one that is possible, where the one ends (40 halvings)."""
    if possible(outside):
        return outside
    for _ in range(40):
        middle = (outside + inside) / 2
        outside, inside = (outside, middle) if possible(middle) else (middle, inside)
    return outside
