"""What a model must reach before it may become champion: rules on metrics, judged by pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidepool.errors import GateError
from tidepool.spec import Rule

VERSUS = "_vs_champion"


@dataclass(frozen=True)
class Outcome:
    """One rule and what came of it."""

    rule: str
    """As in the spec, e.g. `accuracy >= 0.95`."""
    metric: str
    """The gate's key: a metric, or `<metric>_vs_champion`."""
    value: float | None
    """The metric, or its difference to the champion's; None if there is nothing to compare with."""
    bound: float
    ok: bool

    def __str__(self) -> str:
        seen = "no champion to compare with" if self.value is None else f"{self.value:.6g}"
        return f"{self.rule}: {seen}, {'passed' if self.ok else 'MISSED'}"


def check(
    metrics: Mapping[str, float], champion: Mapping[str, float] | None, gate: Mapping[str, Rule]
) -> list[Outcome]:
    """The outcome of every rule, all of them met.

    Raises:
        GateError: a rule is missed (all that are missed are listed), or names a metric that there isn't.
    """
    outcomes = judge(metrics, champion, gate)
    missed = [outcome for outcome in outcomes if not outcome.ok]
    if missed:
        raise GateError(
            f"{len(missed)} of {len(outcomes)} gate rules missed",
            seen=", ".join(f"{outcome.metric} = {outcome.value:.6g}" for outcome in missed),
            allowed=", ".join(outcome.rule for outcome in missed),
            remedy="train longer or with other params, or change evaluate.gate",
        )
    return outcomes


def judge(
    metrics: Mapping[str, float], champion: Mapping[str, float] | None, gate: Mapping[str, Rule]
) -> list[Outcome]:
    """The outcome of every rule, met or missed.

    A `<metric>_vs_champion` rule passes while there is no champion, or one that was never measured by that metric:
    otherwise neither a first model nor a new metric could ever come in.

    Raises:
        GateError: a rule names a metric that there isn't.
    """
    return [_judge(key, rule, metrics, champion) for key, rule in gate.items()]


def compared(metrics: Mapping[str, float], before: Mapping[str, float]) -> str:
    """How metrics differ from those before, for a person; of those that both have.

    >>> compared({"accuracy": 0.972, "loss": 0.1}, {"accuracy": 0.975, "loss": 0.1})
    'accuracy 0.972, was 0.975 (-0.003); loss 0.1 as before'
    """
    parts = []
    for name in sorted(metrics.keys() & before.keys()):
        now, then = metrics[name], before[name]
        digits = next((digits for digits in range(4, 12) if f"{now:.{digits}g}" != f"{then:.{digits}g}"), None)
        if digits is None:
            parts.append(f"{name} {now:.4g} as before")
        else:
            parts.append(f"{name} {now:.{digits}g}, was {then:.{digits}g} ({now - then:+.2g})")
    return "; ".join(parts) or "no metric in common"


def metric_of(key: str, metrics: Mapping[str, float]) -> str:
    """The metric that a gate's key is about: `accuracy` for `accuracy` and for `accuracy_vs_champion`.

    Raises:
        GateError: there is no such metric.
    """
    metric = key if key in metrics else key.removesuffix(VERSUS)
    if metric not in metrics:
        raise GateError(
            "evaluate.gate names a metric that the recipe doesn't give",
            seen=key,
            allowed=", ".join(sorted(metrics)) + f", each also with {VERSUS}",
            remedy="correct evaluate.gate, or add the metric to the recipe",
        )
    return metric


def _judge(key: str, rule: Rule, metrics: Mapping[str, float], champion: Mapping[str, float] | None) -> Outcome:
    metric = metric_of(key, metrics)
    text = f"{key} {rule}"
    if metric == key:
        return Outcome(text, key, metrics[metric], rule.bound, rule.holds(metrics[metric]))
    if champion is None or metric not in champion:
        return Outcome(text, key, None, rule.bound, True)
    # Rounded, because 0.95 - 0.955 is a hair below -0.005 in binary floating point.
    difference = round(metrics[metric] - champion[metric], 12)
    return Outcome(text, key, difference, rule.bound, rule.holds(difference))
