"""The version table reaches those who wait for it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Any

from tidepool.serve.splits import Share
from tidepool.serve.versions import Entry, TableKeeper, VersionTable


def test_a_waiter_gets_the_first_value_at_once() -> None:
    keeper = TableKeeper(read=lambda topic: {"topic": topic}, clock=lambda: 0)
    assert asyncio.run(keeper.wait("model:digits")) == (1, {"topic": "model:digits"})


def test_a_change_wakes_every_waiter() -> None:
    value = {"champion": 1}

    async def scenario() -> list[tuple[int, Any]]:
        keeper = TableKeeper(read=lambda _: dict(value), clock=lambda: 0)
        revision, _ = await keeper.wait("model:digits")
        waiters = [asyncio.create_task(keeper.wait("model:digits", revision)) for _ in range(3)]
        await asyncio.sleep(0)
        value["champion"] = 2
        await keeper.refresh("model:digits")
        return await asyncio.gather(*waiters)

    assert asyncio.run(scenario()) == [(2, {"champion": 2})] * 3


def test_a_refresh_without_news_wakes_nobody() -> None:
    async def scenario() -> int:
        keeper = TableKeeper(read=lambda _: "same", clock=lambda: 0)
        await keeper.wait("model:digits")
        return await keeper.refresh("model:digits")

    assert asyncio.run(scenario()) == 1


def test_a_move_that_nobody_announced_is_found() -> None:
    value = ["old"]

    async def scenario() -> Any:
        keeper = TableKeeper(read=lambda _: value[0], poll_s=0.01, clock=lambda: 0)
        revision, _ = await keeper.wait("model:digits")
        value[0] = "new"
        return await asyncio.wait_for(keeper.wait("model:digits", revision), 5)

    assert asyncio.run(scenario()) == (2, "new")


def test_who_followed_a_keeper_that_has_gone_learns_what_its_successor_knows() -> None:
    async def scenario() -> Any:
        first = TableKeeper(read=lambda _: ["alice", "bob"])
        revision, _ = await first.wait("keys")
        second = TableKeeper(read=lambda _: ["alice"])  # bob's key was revoked while nobody listened
        return await asyncio.wait_for(second.wait("keys", revision), 5)

    assert asyncio.run(scenario())[1] == ["alice"]


def test_a_bug_in_one_reading_does_not_end_the_watch() -> None:
    values: list[Any] = ["old"]

    def read(_: str) -> Any:
        if values[0] is None:
            values[0] = "new"
            raise AttributeError("a bug")
        return values[0]

    async def scenario() -> Any:
        keeper = TableKeeper(read=read, poll_s=0.01, clock=lambda: 0)
        revision, _ = await keeper.wait("keys")
        values[0] = None
        return await asyncio.wait_for(keeper.wait("keys", revision), 5)

    assert asyncio.run(scenario()) == (2, "new")


def test_a_table_survives_json() -> None:
    shares = {"canary": Share("1", 5.0, 1000.5)}
    table = VersionTable("2", (Entry("2", "/a", "d"), Entry("1", "/b", "e")), shares)
    assert VersionTable.from_json(json.loads(json.dumps(asdict(table)))) == table
