"""The ways to run one set of accelerators that a replay compares, and what came of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tidepool.pool.tide import Tide


@dataclass(frozen=True)
class Regime:
    """Who may have how many accelerators."""

    name: str
    replicas: tuple[int, int]
    workers: tuple[int, int]
    shared: bool
    """Whether the pool moves accelerators between the two."""
    default_policy: bool = False
    """Whether Ray's default policy says how many replicas there should be, even though the pool is shared."""


def regimes(accelerators: int) -> list[Regime]:
    """The shared pool, the same with Ray's default policy, two static splits, and Ray without a pool, where a replica
    waits until an accelerator is free.
    """
    half = accelerators // 2
    return [
        Regime("tidepool", (1, accelerators), (0, accelerators), shared=True),
        Regime("default policy", (1, accelerators), (0, accelerators), shared=True, default_policy=True),
        Regime(f"split {half} + {accelerators - half}", (half, half), (accelerators - half,) * 2, shared=False),
        Regime(f"split 1 + {accelerators - 1}", (1, 1), (accelerators - 1,) * 2, shared=False),
        Regime("stock Ray", (1, accelerators), (accelerators - 1,) * 2, shared=False),
    ]


@dataclass(frozen=True)
class Outcome:
    """What came of one regime."""

    regime: str
    accelerators: int
    requests: int
    late: int
    failed: int
    p99_s: float
    samples_per_s: float
    """Of training, over the whole replay."""
    releases_s: list[float]
    pauses_s: list[float]
    steps_redone: int
    idle: float
    """Share of accelerator-seconds that nobody held."""
    goodput: float
    """Samples of training, over what the accelerator-seconds that serving didn't hold could have given."""
    most_resizes: int
    """Of the run within any minute."""
    new_answers_s: list[float]
    """From each wave's beginning until a replica answered that hadn't before."""
    tide: list[tuple[float, int, int, float]]
    """(seconds, accelerators of serving, of training, requests a second), in order."""

    def drawn(self) -> Tide:
        """The picture of who held what."""
        times, serving, training, rate = (list(column) for column in zip(*self.tide, strict=True))
        holders = (("serving", serving), ("training", training))
        return Tide(self.regime, times, self.accelerators, holders, rate, accelerator="accelerators")

    def to_json(self) -> dict[str, Any]:
        """As a JSON-ready object."""
        return asdict(self)


HEADINGS = (
    "", "requests", "late", "failed", "p99", "training samples/s", "goodput of training", "released in", "pauses",
    "steps redone", "most resizes a minute", "idle", "a new replica answers after",
)  # fmt: skip


def rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    """A table's cells, a row a regime."""
    return [
        [
            one.regime,
            f"{one.requests:,}",
            f"{one.late} ({one.late / max(one.requests, 1):.1%})",
            str(one.failed),
            f"{one.p99_s:.2f} s",
            f"{one.samples_per_s:.0f}",
            f"{one.goodput:.0%}",
            _span(one.releases_s),
            _span(one.pauses_s),
            str(one.steps_redone),
            str(one.most_resizes),
            f"{one.idle:.1%}",
            _span(one.new_answers_s),
        ]
        for one in outcomes
    ]


def _span(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{len(seconds)} times, {min(seconds):.2f} to {max(seconds):.2f} s"
