"""A canary is watched and judged."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidepool.errors import SpecError
from tidepool.serve.canary import Decision, Rules, Tally, Watch, confidence, disagree, judge

RULES = Rules(max_error_rate=0.02, p99_ms=50, max_disagreement=0.05, min_requests=500, min_s=60, window_s=60)


def watched(tally: Tally, seconds: float = 100.0) -> Watch:
    """A watch that began at 0 and saw all of it just before `seconds`."""
    watch = Watch(0.0, RULES.window_s)
    watch.see(tally, seconds - 1)
    return watch


def good(requests: int) -> Tally:
    return Tally(requests, errors=requests // 1000, timed=requests, compared=requests, disagreed=requests // 100)


def test_a_good_canary_is_promoted() -> None:
    verdict = judge(watched(good(5000)), RULES, now=100)
    assert verdict.decision is Decision.PROMOTE
    assert {one.rule for one in verdict.evidence} == {"error rate", "slower than 50 ms", "disagreement"}


@pytest.mark.parametrize(
    ("rule", "tally"),
    [
        ("error rate", Tally(answers=400, errors=40, compared=400)),
        ("slower than 50 ms", Tally(answers=400, timed=400, slow=40, compared=400)),
        ("disagreement", Tally(answers=400, compared=400, disagreed=100)),
    ],
)
def test_a_canary_that_breaks_a_rule_is_rolled_back_with_the_evidence(rule: str, tally: Tally) -> None:
    verdict = judge(watched(tally, seconds=5), RULES, now=5)
    assert verdict.decision is Decision.ROLLBACK
    assert rule in verdict.reason
    assert any(one.rule == rule and one.low > one.allowed for one in verdict.evidence)


def test_a_few_failures_prove_nothing() -> None:
    assert judge(watched(Tally(answers=20, errors=1, compared=20)), RULES, now=100).decision is Decision.WAIT


def test_it_waits_for_what_the_rules_ask_even_if_all_is_well() -> None:
    hurried = judge(watched(good(5000), seconds=50), RULES, now=50)
    assert hurried.decision is Decision.WAIT
    assert "too early" in hurried.reason
    few = Rules(max_error_rate=0.5, min_requests=500)
    assert judge(watched(Tally(answers=499)), few, now=100).decision is Decision.WAIT


def test_without_comparisons_disagreement_stays_unknown() -> None:
    verdict = judge(watched(Tally(answers=10_000)), RULES, now=100)
    assert verdict.decision is Decision.WAIT
    assert "disagreement" in verdict.reason


def test_a_canary_that_turns_bad_late_is_found_by_its_window() -> None:
    watch = Watch(0.0, 60.0)
    for minute in range(30):
        watch.see(good(10_000), 60.0 * minute + 1)
    watch.see(Tally(answers=500, errors=60), 1801)
    verdict = judge(watch, RULES, now=1802)
    assert verdict.decision is Decision.ROLLBACK
    assert "in window 31" in verdict.reason


def test_replicas_add_up() -> None:
    one, other = Watch(0.0, 60.0), Watch(0.0, 60.0)
    one.see(Tally(answers=10, errors=1), 30)
    other.see(Tally(answers=5), 30)
    other.see(Tally(answers=7, errors=2), 70)
    one.merge(other)
    assert one.total == Tally(answers=22, errors=3)
    assert (one.window, one.recent) == (2, Tally(answers=7, errors=2))


def test_a_verdict_can_be_logged() -> None:
    document = json.loads(json.dumps(judge(watched(good(5000)), RULES, now=100).to_json()))
    assert document["decision"] == "promote"
    assert len(document["evidence"]) == 6


@pytest.mark.parametrize("wrong", [{"max_error_rate": 0.0}, {"max_disagreement": 1.0}, {"alpha": 0}, {"window_s": 0}])
def test_rules_that_can_never_be_judged_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError):
        Rules(**wrong)  # type: ignore[arg-type]


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(1e-6, 0.5))
def test_confidence_holds_what_was_seen(seen: int, others: int, alpha: float) -> None:
    low, high = confidence(seen, seen + others, alpha)
    assert 0 <= low <= high <= 1
    if seen + others:
        assert low <= seen / (seen + others) <= high


def test_confidence_grows_with_what_was_seen() -> None:
    few, many = confidence(5, 100, 0.05), confidence(500, 10_000, 0.05)
    assert few[0] < many[0] < 0.05 < many[1] < few[1]
    assert confidence(0, 2000, 0.05)[1] < 0.01


def test_who_looks_all_the_time_is_still_wrong_no_more_often_than_said() -> None:
    """Two hundred canaries that keep a rule exactly at its bound, looked at 40 times each."""
    rng, alpha, share, wrong = random.Random(0), 0.2, 0.05, 0
    for _ in range(200):
        seen, found_guilty = 0, False
        for look in range(1, 41):
            seen += sum(rng.random() < share for _ in range(20))
            low, high = confidence(seen, 20 * look, alpha)
            found_guilty = found_guilty or not low <= share <= high
        wrong += found_guilty
    assert wrong / 200 <= alpha


def test_answers_differ_where_they_differ() -> None:
    answer = {"digit": np.array([1, 2]), "p": np.array([0.5, np.nan])}
    assert not disagree(answer, {"digit": np.array([1, 2]), "p": np.array([0.5001, np.nan])}, tolerance=0.001)
    assert disagree(answer, {"digit": np.array([1, 2]), "p": np.array([0.51, np.nan])}, tolerance=0.001)
    assert disagree(answer, {"digit": np.array([1, 3]), "p": answer["p"]}, tolerance=0.001)
    assert disagree(answer, {"digit": np.array([1]), "p": answer["p"]}, tolerance=0.001)
    assert not disagree(answer, {"digit": np.array([1, 2]), "p": np.zeros(2)}, tolerance=0.001, names=["digit"])
