"""The counts of all replicas meet in one watch, and a canary is concluded once."""

from __future__ import annotations

import pytest

from tidepool.serve.canary import Decision, Rules, Tally
from tidepool.serve.splits import Share
from tidepool.serve.watching import News, Watches

RULES = Rules(max_error_rate=0.1, max_disagreement=0.5, min_requests=100, min_s=30)
SHARE = Share("2", 10.0, 1000.0)


class Clock:
    now = 1010.0

    def __call__(self) -> float:
        return self.now


def good(requests: int, share: Share = SHARE, decide: bool = True, alias: str = "canary") -> News:
    return News(alias, share, Tally(answers=requests, compared=requests), RULES, decide)


def bad(requests: int, share: Share = SHARE) -> News:
    return News("canary", share, Tally(answers=requests, errors=requests), RULES, True)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def watches(clock: Clock) -> Watches:
    return Watches(clock)


def test_what_several_replicas_have_seen_adds_up(watches: Watches, clock: Clock) -> None:
    for _ in range(3):
        assert watches.see("digits", good(100)) is None
    assert watches.to_json("digits")["canary"]["answers"] == 300
    clock.now += 60
    verdict = watches.see("digits", good(0))
    assert verdict is not None
    assert verdict.decision is Decision.PROMOTE
    assert "error rate 0/300" in verdict.reason


def test_a_canary_that_breaks_a_rule_is_ended_once(watches: Watches) -> None:
    verdict = watches.see("digits", bad(100))
    assert verdict is not None
    assert verdict.decision is Decision.ROLLBACK
    assert watches.see("digits", bad(100)) is None
    watches.reopen("digits", "canary")
    assert watches.see("digits", bad(100)) is not None


@pytest.mark.parametrize("decide", [True, False])
def test_a_canary_that_a_replica_cannot_load_is_ended_if_it_decides_itself(watches: Watches, decide: bool) -> None:
    assert watches.see("digits", good(100)) is None
    verdict = watches.see("digits", News("canary", SHARE, Tally(), RULES, decide, "no memory"))
    assert watches.see("digits", good(100, decide=False)) is None
    assert watches.to_json("digits")["canary"]["failure"] == "no memory"
    assert (verdict is not None) == decide
    if verdict is not None:
        assert (verdict.decision, verdict.reason) == (Decision.ROLLBACK, "it can't be loaded: no memory")


def test_a_new_share_is_watched_anew_and_news_of_the_old_one_is_passed_over(watches: Watches) -> None:
    assert watches.see("digits", bad(20)) is not None
    later = Share("2", 20.0, 1005.0)
    assert watches.see("digits", good(10, later)) is None
    assert watches.see("digits", bad(1000)) is None
    assert watches.to_json("digits")["canary"]["errors"] == 0


def test_nothing_is_decided_that_the_spec_leaves_to_people(watches: Watches, clock: Clock) -> None:
    clock.now += 600
    assert watches.see("digits", good(5000, decide=False)) is None
    assert watches.see("digits", good(5000, decide=False, alias="shadow")) is None
    document = watches.to_json("digits")
    assert {alias: (seen["answers"], seen["verdict"]) for alias, seen in document.items()} == {
        "canary": (5000, None),
        "shadow": (5000, None),
    }
    assert watches.to_json("churn") == {}
