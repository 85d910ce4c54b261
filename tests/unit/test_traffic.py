"""Requests are divided between champion, canary and shadow, and what comes of it is counted."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tidepool.artifact import open_artifact
from tidepool.errors import TidepoolError
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion, load_version
from tidepool.serve.protocol import InferRequest, InferResponse, Tensors
from tidepool.serve.splits import Share
from tidepool.serve.traffic import TrafficControl
from tidepool.settings import Settings
from tidepool.spec import ServeSpec

pytestmark = pytest.mark.usefixtures("home")

CANARY, SHADOW = Share("2", 50.0, 1000.0), Share("2", 100.0, 1000.0)


@pytest.fixture
def versions(make_artifact: Callable[..., Path]) -> dict[str, LoadedVersion]:
    """Version 1 answers 1, version 2 answers 2, version 3 is as version 1."""
    return {v: load_version(v, open_artifact(str(make_artifact(n)))) for v, n in (("1", 1), ("2", 2), ("3", 1))}


class Plane(Dataplane):
    """A dataplane whose champion is version 1."""

    def __init__(self, versions: Mapping[str, LoadedVersion], spec: Mapping[str, Any], **shares: Share) -> None:
        super().__init__("digits")
        self.control = TrafficControl("digits", ServeSpec.model_validate(spec), Settings())
        self.flip(Lineup("1", versions, self.control.plan("1", shares, versions)))

    def ask(self, *requests: InferRequest, version: str | None = None) -> list[InferResponse]:
        async def all_of_them() -> list[InferResponse]:
            return [await self.infer(each, version) for each in requests]

        return asyncio.run(all_of_them())

    def seen(self, alias: str) -> dict[str, Any]:
        document: dict[str, Any] = self.statistics()["traffic"][alias]
        return document

    def wait_for(self, alias: str, compared: int) -> dict[str, Any]:
        """What was seen once so much was compared or was asked in vain."""
        until = time.monotonic() + 60
        while (seen := self.seen(alias))["compared"] + seen["failed"] < compared:
            assert time.monotonic() < until, seen
            time.sleep(0.01)
        return seen


def request(id_: str | None = None, **parameters: Any) -> InferRequest:
    return InferRequest({"image": np.zeros((1, 64), np.float32)}, id=id_, parameters=parameters)


def test_a_request_key_always_meets_the_same_version(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {}, canary=CANARY)
    first = [answer.version for answer in plane.ask(*(request(key=f"customer-{n}") for n in range(200)))]
    again = [answer.version for answer in plane.ask(*(request(str(n), key=f"customer-{n}") for n in range(200)))]
    assert first == again
    assert 60 < first.count("2") < 140


def test_without_a_key_the_id_decides_and_without_an_id_chance(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {}, canary=CANARY)
    assert len({answer.version for answer in plane.ask(*[request("the same")] * 50)}) == 1
    assert {answer.version for answer in plane.ask(*[request()] * 50)} == {"1", "2"}


def test_an_answer_is_the_canarys_own_and_names_it(versions: dict[str, LoadedVersion]) -> None:
    for answer in Plane(versions, {}, canary=CANARY).ask(*[request()] * 50):
        assert answer.outputs["digit"] == [int(answer.version)]
        assert answer.parameters["digest"] == versions[answer.version].digest


def test_who_names_a_version_gets_that_one_and_counts_nowhere(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {}, canary=dataclasses.replace(CANARY, percent=100.0))
    assert {answer.version for answer in plane.ask(*[request()] * 10, version="1")} == {"1"}
    assert {answer.version for answer in plane.ask(*[request()] * 10, version="2")} == {"2"}
    assert plane.seen("canary")["answers"] == 0


def test_a_shadow_is_compared_and_never_returned(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {}, shadow=SHADOW)
    assert {answer.version for answer in plane.ask(*[request()] * 20)} == {"1"}
    seen = plane.wait_for("shadow", 20)
    assert (seen["version"], seen["compared"], seen["disagreed"], seen["answers"]) == ("2", 20, 20, 0)


def test_versions_that_agree_do_not_disagree(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {}, shadow=dataclasses.replace(SHADOW, version="3"))
    plane.ask(*[request()] * 20)
    assert plane.wait_for("shadow", 20)["disagreed"] == 0


def test_the_spec_says_which_outputs_are_compared(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {"compare": {"outputs": ["probabilities"], "tolerance": 1.0}}, shadow=SHADOW)
    plane.ask(request())
    assert plane.wait_for("shadow", 1)["disagreed"] == 0


def test_the_canarys_answers_are_counted_and_compared_with_the_champions(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {"canary": {"p99_ms": 1e-6}}, canary=CANARY)
    answers = plane.ask(*[request()] * 40)
    mine = sum(answer.version == "2" for answer in answers)
    seen = plane.wait_for("canary", mine)
    assert [seen[name] for name in ("answers", "timed", "slow", "compared", "disagreed")] == [mine] * 5


def failing(_: Tensors) -> Tensors:
    raise ValueError("a model's own bug")


def test_a_shadow_that_fails_is_counted_and_nobody_hears_of_it(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane({**versions, "2": dataclasses.replace(versions["2"], answer=failing)}, {}, shadow=SHADOW)
    assert {answer.version for answer in plane.ask(*[request()] * 5)} == {"1"}
    assert plane.wait_for("shadow", 5)["failed"] == 5


def test_only_failures_of_the_canary_itself_count_against_it(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {}, canary=dataclasses.replace(CANARY, percent=100.0))
    with pytest.raises(TidepoolError, match="priority"):
        plane.ask(request(priority="high"))
    assert plane.seen("canary")["errors"] == 0
    versions["2"].batcher._call = failing
    with pytest.raises(ValueError, match="own bug"):
        plane.ask(request())
    assert (plane.seen("canary")["answers"], plane.seen("canary")["errors"]) == (1, 1)


def test_shares_of_versions_that_are_not_loaded_are_the_champions(versions: dict[str, LoadedVersion]) -> None:
    one = {"1": versions["1"]}
    plane = Plane(one, {}, canary=CANARY, shadow=SHADOW)
    assert plane.lineup.traffic is None
    assert {answer.version for answer in plane.ask(*[request()] * 20)} == {"1"}


def test_what_was_seen_lasts_until_the_share_changes(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {}, canary=CANARY)
    plane.ask(*[request()] * 40)
    before = plane.control.observed["canary"]
    assert before.tally.answers
    plane.control.plan("1", {"canary": CANARY, "shadow": Share("3", 100.0, 2000.0)}, versions)
    assert plane.control.observed["canary"] is before
    plane.control.plan("1", {"canary": dataclasses.replace(CANARY, percent=60.0)}, versions)
    assert plane.control.observed["canary"].tally.answers == 0


def test_a_replica_tells_what_is_new(versions: dict[str, LoadedVersion]) -> None:
    plane = Plane(versions, {"canary": {"decide": True}}, canary=dataclasses.replace(CANARY, percent=100.0))
    plane.ask(*[request()] * 5)
    plane.wait_for("canary", 5)
    (first,) = plane.control.news()
    assert (first.alias, first.tally.answers, first.tally.compared, first.decide) == ("canary", 5, 5, True)
    plane.ask(request())
    (second,) = plane.control.news()
    assert second.tally.answers == 1
    plane.control.plan("1", {}, versions)
    assert plane.control.news() == []
