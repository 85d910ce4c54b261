"""A model that shares its replica: loaded by its first request, put away for others, promoted while it is away."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidepool.artifact import open_artifact
from tidepool.errors import DoesNotFit, InvalidRequest, NotReady, TryLater, UnknownModel
from tidepool.serve.protocol import InferRequest
from tidepool.serve.scale import Scale
from tidepool.serve.shelf import Shelf
from tidepool.serve.tenant import WEIGHED_AGAIN_S, Tenant
from tidepool.serve.versions import Entry, VersionTable
from tidepool.spec import ServeSpec

pytestmark = pytest.mark.usefixtures("home")

SPEC = ServeSpec(placement="shared")


class Balance:
    """An allocator that gives out a megabyte between two looks at it."""

    def __init__(self) -> None:
        self.allocated = 0

    def __call__(self) -> int:
        self.allocated += 1_000_000
        return self.allocated


class House:
    """Some tenants with room for `room` versions of a megabyte."""

    def __init__(self, room: float) -> None:
        self.shelf, self.scale = Shelf(int(room * 1e6)), Scale(Balance())

    def tenant(self, name: str, clock: Callable[[], float] = time.monotonic) -> Tenant:
        return Tenant(name, SPEC, self.shelf, self.scale, clock)


async def digit(tenant: Tenant, version: str | None = None) -> tuple[str, int]:
    """The version that answers for an empty picture, and its answer."""
    request = InferRequest({"image": np.zeros((1, 64), np.float32)})
    response = await tenant.infer(request, version)
    return response.version, int(response.outputs["digit"][0])


@pytest.fixture
def table(make_artifact: Callable[..., Path]) -> Callable[..., dict[str, Any]]:
    """The table of some versions, each of which answers with its own number."""

    def make(champion: int, *others: int) -> dict[str, Any]:
        folders = {number: str(make_artifact(number)) for number in (champion, *others) if number not in made}
        made.update({number: Entry(str(number), uri, open_artifact(uri).digest) for number, uri in folders.items()})
        return asdict(VersionTable(str(champion), tuple(made[number] for number in (champion, *others))))

    made: dict[int, Entry] = {}
    return make


def run(story: Callable[[], Awaitable[Any]]) -> None:
    async def told() -> None:
        await story()

    asyncio.run(told())


def test_a_model_is_loaded_by_its_first_request_and_put_away_for_another(table: Callable[..., dict[str, Any]]) -> None:
    async def story() -> None:
        house = House(room=1.5)
        one, two = house.tenant("one"), house.tenant("two")
        with pytest.raises(NotReady):
            await digit(one)
        for tenant, number in ((one, 1), (two, 2)):
            await tenant.apply(table(number))
            assert tenant.ready(str(number))
            assert not tenant.versions
        assert await digit(one) == ("1", 1)
        gone = weakref.ref(one.versions["1"].batcher)
        assert await digit(two) == ("2", 2)
        assert not one.versions
        assert gone() is None
        assert await digit(one) == ("1", 1)

    run(story)


def test_a_model_that_is_put_away_still_says_what_its_tensors_are(table: Callable[..., dict[str, Any]]) -> None:
    async def story() -> None:
        house = House(room=1.5)
        one, two = house.tenant("one"), house.tenant("two")
        wrong = InvalidRequest("unreadable")
        wrong.told = [("image", "FP64", [1, 64])]
        for tenant in (one, two):
            await tenant.apply(table(1))
            assert tenant.plainer(wrong, None) is wrong
            await digit(tenant)
        assert not one.versions
        for version in (None, "1"):
            assert "Allowed: FP32" in str(one.plainer(wrong, version))
        assert one.plainer(wrong, "9") is wrong

    run(story)


def test_statistics_outlive_being_put_away(table: Callable[..., dict[str, Any]]) -> None:
    async def story() -> None:
        house = House(room=1.5)
        one, two = house.tenant("one"), house.tenant("two")
        for tenant in (one, two):
            await tenant.apply(table(1))
            await digit(tenant)
        told = one.statistics()
        assert told["model_stats"][0]["inference_count"] == 1
        shelf = told["shelf"]
        assert [shelf[name] for name in ("hits", "loads", "evictions", "bytes", "in_use")] == [0, 1, 1, 0, 0]
        assert (shelf["all_bytes"], shelf["budget_bytes"]) == (1_000_000, 1_500_000)
        await digit(one)
        assert one.statistics("1")["model_stats"][0]["inference_count"] == 2
        with pytest.raises(UnknownModel):
            one.statistics("7")

    run(story)


def test_a_promotion_reaches_a_model_in_memory_at_once_and_one_that_is_away_later(
    table: Callable[..., dict[str, Any]],
) -> None:
    async def story() -> None:
        house = House(room=4.5)
        here, away = house.tenant("here"), house.tenant("away")
        for tenant in (here, away):
            await tenant.apply(table(1))
        await digit(here)
        for tenant in (here, away):
            await tenant.apply(table(2, 1))
        assert (list(here.versions), list(away.versions)) == (["2", "1"], [])
        for tenant in (here, away):
            assert await digit(tenant) == ("2", 2)
            assert await digit(tenant, "1") == ("1", 1)
        assert house.shelf.used == 4_000_000

    run(story)


def test_a_champion_that_is_too_large_is_refused_and_another_version_left_out(
    table: Callable[..., dict[str, Any]],
) -> None:
    async def story() -> None:
        small, smaller = House(room=1.5).tenant("one"), House(room=0.5).tenant("one")
        for tenant in (small, smaller):
            await tenant.apply(table(1, 2))
        await digit(small)
        assert list(small.versions) == ["1"]
        for _ in range(2):
            with pytest.raises(DoesNotFit, match=r"1\.0 MB"):
                await digit(smaller)

    run(story)


def test_a_model_that_was_found_too_large_is_weighed_again_after_a_while(table: Callable[..., dict[str, Any]]) -> None:
    async def story() -> None:
        house, now = House(room=1.5), 0.0
        tenant, extra = house.tenant("one", lambda: now), 0
        balance = Balance()
        house.scale = tenant._scale = Scale(lambda: balance() + extra * balance.allocated)
        await tenant.apply(table(1))
        extra = 1  # what others take meanwhile counts with it
        for _ in range(2):
            with pytest.raises(DoesNotFit):
                await digit(tenant)
        looks = balance.allocated
        extra = 0
        with pytest.raises(DoesNotFit):
            await digit(tenant)
        assert balance.allocated == looks, "it isn't loaded for every request"
        now += WEIGHED_AGAIN_S
        assert await digit(tenant) == ("1", 1)

    run(story)


def test_a_request_waits_for_a_load_no_longer_than_it_has(table: Callable[..., dict[str, Any]]) -> None:
    async def story() -> None:
        tenant = House(room=1.5).tenant("one")
        await tenant.apply(table(1))
        pixels = {"image": np.zeros((1, 64), np.float32)}
        with pytest.raises(TryLater, match="while the model was loaded"):
            await tenant.infer(InferRequest(pixels, parameters={"timeout": 1}))
        assert await digit(tenant) == ("1", 1)

    run(story)


def test_a_model_that_was_loaded_in_time_stays_for_its_request(table: Callable[..., dict[str, Any]]) -> None:
    async def story() -> None:
        house = House(room=1.5)
        one, two = house.tenant("one"), house.tenant("two")
        await one.apply(table(1))
        await two.apply(table(2))
        pixels = {"image": np.zeros((1, 64), np.float32)}
        async with one.held():  # so that there is no room for both
            answer = await two.infer(InferRequest(pixels, parameters={"timeout": 9_000_000}))
            assert answer.version == "2"
        counts = house.shelf.statistics(two)
        assert (counts["loads"], counts["hits"]) == (1, 0)

    run(story)
