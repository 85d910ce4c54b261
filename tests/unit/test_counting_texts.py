"""Texts count like other requests, and canaries get their share of them."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from texts import events, letters_in, post
from tidepool.serve.dataplane import Dataplane, Lineup
from tidepool.serve.splits import Share
from tidepool.serve.statistics import Counts
from tidepool.serve.traffic import TrafficControl
from tidepool.settings import Settings
from tidepool.spec import ServeSpec


@pytest.fixture(scope="module")
def dataplane(tmp_path_factory: pytest.TempPathFactory) -> Dataplane:
    return letters_in(tmp_path_factory.mktemp("letters"))


def successes_and_failures(plane: Dataplane) -> tuple[int, int]:
    (seen,) = plane.statistics("1")["model_stats"]
    return seen["inference_stats"]["success"]["count"], seen["inference_stats"]["fail"]["count"]


def test_a_text_counts_as_one_request(dataplane: Dataplane) -> None:
    def stumble(text: str, parameters: Any) -> Generator[str, None, None]:
        yield "a"
        if text == "fall":
            raise ValueError(text)

    plane = Dataplane("letters")
    plane.flip(Lineup("1", {"1": replace(dataplane.choose(None), counts=Counts(), generate=stumble)}))
    assert post(plane, "generate", text_input="t").status_code == 200
    assert len(events(post(plane, "generate_stream", text_input="t"))) == 1
    assert successes_and_failures(plane) == (2, 0)
    assert post(plane, "generate", text_input="fall").status_code == 500
    assert post(plane, "generate", text_input="t", timeout=-1).status_code == 400
    assert successes_and_failures(plane) == (2, 1)


@pytest.mark.usefixtures("home")
def test_a_canary_generates_its_share(dataplane: Dataplane) -> None:
    def stumble(text: str, parameters: Any) -> Generator[str, None, None]:
        yield "b"
        if text == "fall":
            raise ValueError(text)

    champion = dataplane.choose(None)
    versions = {"1": champion, "2": replace(champion, version="2", generate=stumble)}
    control, plane = TrafficControl("letters", ServeSpec(), Settings()), Dataplane("letters")
    plane.flip(Lineup("1", versions, control.plan("1", {"canary": Share("2", 100.0, 1000.0)}, versions)))
    for text in ("t", "fall"):
        assert events(post(plane, "generate_stream", text_input=text))[0]["model_version"] == "2"
    assert post(plane, "versions/1/generate", text_input="t").json()["model_version"] == "1"
    seen = plane.statistics()["traffic"]["canary"]
    assert (seen["answers"], seen["errors"], seen["timed"]) == (2, 1, 0)


@pytest.mark.usefixtures("home")
def test_a_canary_of_a_model_that_does_not_generate_is_not_charged_for_texts(dataplane: Dataplane) -> None:
    champion = replace(dataplane.choose(None), generate=None)
    versions = {"1": champion, "2": replace(champion, version="2")}
    control, plane = TrafficControl("letters", ServeSpec(), Settings()), Dataplane("letters")
    plane.flip(Lineup("1", versions, control.plan("1", {"canary": Share("2", 100.0, 1000.0)}, versions)))
    assert post(plane, "generate", text_input="t").status_code == 400
    seen = plane.statistics()["traffic"]["canary"]
    assert (seen["answers"], seen["errors"]) == (0, 0)


@pytest.mark.usefixtures("home")
def test_a_canary_that_does_not_generate_is_charged_for_it_and_the_champion_answers(dataplane: Dataplane) -> None:
    champion = dataplane.choose(None)
    versions = {"1": champion, "2": replace(champion, version="2", generate=None)}
    control, plane = TrafficControl("letters", ServeSpec(), Settings()), Dataplane("letters")
    plane.flip(Lineup("1", versions, control.plan("1", {"canary": Share("2", 100.0, 1000.0)}, versions)))
    assert post(plane, "generate", text_input="t").json()["model_version"] == "1"
    assert post(plane, "versions/2/generate", text_input="t").status_code == 400
    seen = plane.statistics()["traffic"]["canary"]
    assert (seen["answers"], seen["errors"]) == (1, 1)
