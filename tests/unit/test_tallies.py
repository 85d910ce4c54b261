"""What replicas tell each other of the requests that they let through."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tidepool.errors import TryLater
from tidepool.serve.limits import DAY_S, Limit, Limits, Use
from tidepool.serve.tallies import SAVE_S, TallyKeeper, Totals, Uses, share

NOON = 20_000 * DAY_S + DAY_S / 2


class Fleet:
    """Replicas on one clock, and the keeper that they tell."""

    def __init__(self, path: Path, replicas: int) -> None:
        self.now = NOON
        self.path = path
        self.keeper = TallyKeeper(path, lambda: self.now)
        self.replicas = [Limits(lambda: self.now) for _ in range(replicas)]

    def tell(self) -> None:
        """Two rounds, so that everybody has heard of everybody."""
        for _ in range(2):
            for limits in self.replicas:
                limits.hear(self.keeper.add(limits.tell()))

    def let_through(self, limit: Limit, requests: int) -> int:
        """How many pass of so many requests, spread over the replicas."""
        passed = 0
        for number in range(requests):
            try:
                self.replicas[number % len(self.replicas)].check("alice", limit)
                passed += 1
            except TryLater:
                pass
        return passed


def test_a_quota_holds_over_all_replicas_but_for_what_comes_between_two_tellings(tmp_path: Path) -> None:
    fleet, limit = Fleet(tmp_path / "quotas.json", 4), Limit(per_day=100)
    passed = 0
    for _ in range(50):
        passed += fleet.let_through(limit, 8)
        fleet.tell()
    assert 100 <= passed < 100 + 8


def test_a_rate_holds_in_the_long_run_whatever_the_number_of_replicas(tmp_path: Path) -> None:
    fleet, limit, passed = Fleet(tmp_path / "quotas.json", 4), Limit(per_second=10, burst=10), 0
    for _ in range(500):
        fleet.now += 0.2
        passed += fleet.let_through(limit, 40)
        fleet.tell()
    assert 100 * 10 <= passed <= 100 * 10 + 4 * 10


def test_the_days_counts_outlive_the_keeper_and_end_with_the_day(tmp_path: Path) -> None:
    fleet, limit = Fleet(tmp_path / "quotas.json", 1), Limit(per_day=5)
    assert fleet.let_through(limit, 9) == 5
    fleet.now += SAVE_S
    fleet.tell()
    again = TallyKeeper(fleet.path, lambda: fleet.now)
    assert again.add({"alice": Use(0, 0.0, int(NOON // DAY_S))})["alice"].requests == 5
    fleet.now += DAY_S / 2
    assert fleet.let_through(limit, 9) == 5
    fleet.tell()
    assert fleet.let_through(limit, 9) == 0


def test_damaged_counts_begin_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "quotas.json").write_text("{")
    keeper = TallyKeeper(tmp_path / "quotas.json", lambda: NOON)
    assert keeper.add({"alice": Use(3, 0.0, int(NOON // DAY_S))})["alice"].requests == 3
    assert "begin anew" in caplog.text


def test_what_could_not_be_told_is_told_later_and_nothing_is_told_when_nobody_asks(tmp_path: Path) -> None:
    limits, limit, keeper = Limits(lambda: NOON), Limit(per_day=3), TallyKeeper(tmp_path / "q", lambda: NOON)
    limits.check("alice", limit)
    limits.take_back(limits.tell())
    told: list[Uses] = []

    async def scenario() -> None:
        heard = asyncio.Event()

        async def add(uses: Uses) -> Totals:
            told.append(uses)
            heard.set()
            return keeper.add(uses)

        task = asyncio.create_task(share(limits, add, every_s=0.0))
        await heard.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()

    asyncio.run(scenario())
    assert [uses["alice"].requests for uses in told] == [1]
    assert limits.shared
