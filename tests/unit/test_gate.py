"""The gate lets a model through only if every rule holds."""

from __future__ import annotations

import pytest

from tidepool.errors import GateError
from tidepool.evaluate.gate import check, judge
from tidepool.spec import Rule


def gate(**rules: str) -> dict[str, Rule]:
    return {name: Rule.model_validate(text) for name, text in rules.items()}


def test_met_rules_pass_with_their_values() -> None:
    (outcome,) = check({"accuracy": 0.97}, None, gate(accuracy=">= 0.95"))
    assert (outcome.metric, outcome.value, outcome.bound, outcome.ok) == ("accuracy", 0.97, 0.95, True)
    assert str(outcome) == "accuracy >= 0.95: 0.97, passed"


def test_the_error_lists_every_missed_rule_and_no_other() -> None:
    rules = gate(accuracy=">= 0.95", loss="<= 0.2", recall="> 0.5")
    with pytest.raises(GateError) as caught:
        check({"accuracy": 0.9, "loss": 0.3, "recall": 0.8}, None, rules)
    assert "2 of 3 gate rules missed" in str(caught.value)
    assert "accuracy = 0.9, loss = 0.3" in str(caught.value)
    assert "accuracy >= 0.95, loss <= 0.2" in str(caught.value)


def test_without_a_champion_comparisons_pass_and_say_so() -> None:
    (outcome,) = check({"accuracy": 0.1}, None, gate(accuracy_vs_champion=">= -0.005"))
    assert outcome.ok
    assert outcome.value is None
    assert "no champion" in str(outcome)


def test_a_champion_without_the_metric_is_no_obstacle() -> None:
    assert check({"f1": 0.1}, {"accuracy": 0.9}, gate(f1_vs_champion=">= 0"))[0].value is None


def test_a_model_worse_than_the_champion_is_refused() -> None:
    with pytest.raises(GateError, match=r"accuracy_vs_champion = -0\.02"):
        check({"accuracy": 0.96}, {"accuracy": 0.98}, gate(accuracy_vs_champion=">= -0.005"))


def test_a_difference_of_exactly_the_bound_passes() -> None:
    assert 0.95 - 0.955 < -0.005  # what floating point makes of it
    assert check({"accuracy": 0.95}, {"accuracy": 0.955}, gate(accuracy_vs_champion=">= -0.005"))[0].ok


def test_a_rule_on_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(GateError, match=r"Seen: acuracy\. Allowed: accuracy, loss, each also with _vs_champion"):
        check({"loss": 0.1, "accuracy": 0.9}, None, gate(acuracy=">= 0.95"))


def test_not_a_number_meets_no_rule() -> None:
    for rule in (">= 0", "<= 0", "== 0"):
        assert not judge({"accuracy": float("nan")}, None, gate(accuracy=rule))[0].ok


def test_an_empty_gate_lets_everything_through() -> None:
    assert check({"accuracy": 0.0}, {"accuracy": 1.0}, {}) == []
