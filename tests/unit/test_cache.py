"""Answers that are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from tidepool.errors import Overloaded
from tidepool.serve.cache import ENTRY_BYTES, Cache, cache_key
from tidepool.serve.protocol import Tensors

INPUTS: Tensors = {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "s": np.array([b"a", b"bc"], dtype=np.object_)}
KEY = cache_key("digits", "d1", INPUTS)


class Model:
    """Counts its calls; each waits until `go` is set, and the first ones fail as told."""

    def __init__(self, *failures: BaseException) -> None:
        self.calls, self.failures, self.go = 0, list(failures), asyncio.Event()

    async def __call__(self) -> Tensors:
        self.calls += 1
        await self.go.wait()
        if self.failures:
            raise self.failures.pop(0)
        return {"y": np.full(3, self.calls)}


def test_equal_requests_have_equal_keys_whatever_the_order_and_the_delivery() -> None:
    turned = dict(reversed(INPUTS.items()))
    assert cache_key("digits", "d1", turned, {"binary_data_output": True, "timeout": 5}) == KEY
    assert cache_key("digits", "d1", {**INPUTS, "x": np.asfortranarray(INPUTS["x"])}) == KEY


@pytest.mark.parametrize(
    "other",
    [
        cache_key("letters", "d1", INPUTS),
        cache_key("digits", "d2", INPUTS),
        cache_key("digits", "d1", INPUTS, {"temperature": 1}),
        cache_key("digits", "d1", {**INPUTS, "x": INPUTS["x"].reshape(3, 2)}),
        cache_key("digits", "d1", {**INPUTS, "x": INPUTS["x"].astype(np.float64)}),
        cache_key("digits", "d1", {**INPUTS, "x": INPUTS["x"].view(np.int32)}),
        cache_key("digits", "d1", {**INPUTS, "x": INPUTS["x"] + 1}),
        cache_key("digits", "d1", {**INPUTS, "s": np.array([b"ab", b"c"], dtype=np.object_)}),
        cache_key("digits", "d1", {"x": INPUTS["x"], "t": INPUTS["s"]}),
    ],
)
def test_what_makes_another_answer_makes_another_key(other: bytes) -> None:
    assert other != KEY


def test_an_answer_is_computed_once_and_nobody_can_change_it() -> None:
    async def scenario() -> None:
        cache, model = Cache(1 << 20), Model()
        model.go.set()
        first = await cache.get(KEY, model)
        assert await cache.get(KEY, model) is first
        assert model.calls == 1
        with pytest.raises(ValueError, match="read-only"):
            first["y"][0] = 9
        assert (cache.statistics.hits, cache.statistics.misses, cache.statistics.entries) == (1, 1, 1)

    asyncio.run(scenario())


def test_a_kept_answer_does_not_hold_its_whole_batch_in_memory() -> None:
    batch = np.zeros((1000, 3))

    async def compute() -> Tensors:
        return {"y": batch[5:6]}

    async def scenario() -> None:
        cache = Cache(1 << 20)
        assert not np.shares_memory((await cache.get(KEY, compute))["y"], batch)
        assert cache.statistics.bytes == 24 + ENTRY_BYTES

    asyncio.run(scenario())


def test_bytes_are_bounded_and_the_least_recently_used_leave_first() -> None:
    async def scenario() -> None:
        cache, model = Cache(3 * (24 + ENTRY_BYTES)), Model()
        model.go.set()
        for key in (b"a", b"b", b"c", b"a", b"d"):
            await cache.get(key, model)
        assert cache.statistics.bytes <= 3 * (24 + ENTRY_BYTES)
        assert (cache.statistics.entries, cache.statistics.evicted) == (3, 1)
        before = model.calls
        await cache.get(b"a", model)
        assert model.calls == before
        await cache.get(b"b", model)
        assert model.calls == before + 1

    asyncio.run(scenario())


def test_an_answer_larger_than_the_cache_is_not_kept() -> None:
    async def scenario() -> None:
        cache, model = Cache(10), Model()
        model.go.set()
        await cache.get(KEY, model)
        assert cache.statistics.entries == cache.statistics.bytes == 0

    asyncio.run(scenario())


async def in_the_air(cache: Cache, model: Model, requests: int) -> list[asyncio.Task[Tensors]]:
    tasks = [asyncio.create_task(cache.get(KEY, model)) for _ in range(requests)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    return tasks


def test_identical_requests_in_the_air_are_computed_once() -> None:
    async def scenario() -> None:
        cache, model = Cache(1 << 20), Model()
        tasks = await in_the_air(cache, model, 10)
        model.go.set()
        answers = await asyncio.gather(*tasks)
        assert model.calls == 1
        assert all(answer is answers[0] for answer in answers)
        assert cache.statistics.followed == 9

    asyncio.run(scenario())


@pytest.mark.parametrize("cancelled", [[0], [0, 1], [1], [0, 1, 2], [2, 0]])
def test_whoever_is_cancelled_the_others_are_answered(cancelled: list[int]) -> None:
    async def scenario() -> list[Any]:
        cache, model = Cache(1 << 20), Model()
        tasks = await in_the_air(cache, model, 4)
        for index in cancelled:
            tasks[index].cancel()
            await asyncio.sleep(0)
        model.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    for index, outcome in enumerate(asyncio.run(scenario())):
        assert isinstance(outcome, asyncio.CancelledError if index in cancelled else dict)


def test_a_follower_cancelled_just_when_it_is_to_lead_hands_over() -> None:
    async def scenario() -> list[Any]:
        cache, model = Cache(1 << 20), Model()
        tasks = await in_the_air(cache, model, 3)
        tasks[0].cancel()
        while not tasks[0].done():
            await asyncio.sleep(0)
        tasks[1].cancel()  # it has been told, and has not heard it
        model.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(scenario())] == [asyncio.CancelledError] * 2 + [dict]


def test_when_all_are_cancelled_nothing_is_left() -> None:
    async def scenario() -> None:
        cache, model = Cache(1 << 20), Model()
        tasks = await in_the_air(cache, model, 3)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        model.go.set()
        assert "y" in await asyncio.wait_for(cache.get(KEY, model), 5)

    asyncio.run(scenario())


def test_errors_reach_all_who_asked_and_are_not_kept() -> None:
    async def scenario() -> None:
        cache, model = Cache(1 << 20), Model(ValueError("bad"))
        tasks = await in_the_air(cache, model, 3)
        model.go.set()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(outcome) for outcome in outcomes] == ["bad"] * 3
        assert model.calls == 1
        assert "y" in await cache.get(KEY, model)

    asyncio.run(scenario())


def test_a_leader_that_is_refused_takes_nobody_with_it() -> None:
    async def scenario() -> list[Any]:
        cache, model = Cache(1 << 20), Model(Overloaded("too late for the leader's own deadline"))
        tasks = await in_the_air(cache, model, 3)
        model.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(outcome) for outcome in asyncio.run(scenario())] == [Overloaded, dict, dict]
