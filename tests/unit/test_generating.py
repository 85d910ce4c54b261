"""Text that a small model generates, whole and as server-sent events."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from letters import TEXT
from texts import events, letters_in, post
from tidepool.artifact import open_artifact
from tidepool.errors import InvalidRequest, Overloaded, TryLater
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.generating import Generating, Prompt, decode
from tidepool.serve.rest import ModelApp

PREFIX = "/v2/models/letters"
VALUES = st.none() | st.integers(-9, 9) | st.text(max_size=5) | st.dictionaries(st.text(max_size=5), st.booleans())
JSON = st.dictionaries(st.sampled_from(["text_input", "parameters", "id", "other"]), VALUES) | VALUES


@pytest.fixture(scope="module")
def dataplane(tmp_path_factory: pytest.TempPathFactory) -> Dataplane:
    return letters_in(tmp_path_factory.mktemp("letters"))


def test_text_comes_whole_or_in_pieces(dataplane: Dataplane) -> None:
    asked = {"text_input": "the t", "parameters": {"max_tokens": 30, "seed": 4}, "id": "7"}
    whole = post(dataplane, "generate", **asked).json()
    assert (whole["model_name"], whole["model_version"], whole["id"]) == ("letters", "1", "7")
    assert len(whole["text_output"]) == 30
    assert set(whole["text_output"]) <= set(TEXT)
    pieces = events(post(dataplane, "versions/1/generate_stream", **asked))
    assert [piece["model_version"] for piece in pieces] == ["1"] * 30
    assert "".join(piece["text_output"] for piece in pieces) == whole["text_output"]
    assert dataplane.ran_s > 0


def test_an_answer_names_the_artifact(dataplane: Dataplane) -> None:
    about = {"digest": dataplane.choose("1").digest}
    assert post(dataplane, "generate", text_input="t").json()["parameters"] == about
    assert events(post(dataplane, "generate_stream", text_input="t", max_tokens=1))[0]["parameters"] == about


def test_parameters_may_stand_beside_the_text(dataplane: Dataplane) -> None:
    assert len(post(dataplane, "generate", text_input="t", max_tokens=3).json()["text_output"]) == 3
    assert events(post(dataplane, "generate_stream", text_input="t", max_tokens=0)) == []


@pytest.mark.parametrize("way", ["generate", "generate_stream"])
@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "no text_input"),
        ({"text_input": 3}, "no text_input"),
        ({"text_input": "t", "parameters": []}, "not an object"),
        ({"text_input": "t", "id": 3}, "not a string"),
        ({"text_input": "é"}, "not ASCII"),
        ({"text_input": "t", "max_tokens": -1}, "max_tokens"),
        ({"text_input": "t", "timeout": -1}, "timeout"),
    ],
)
def test_what_is_wrong_is_said_before_the_first_piece(
    dataplane: Dataplane, way: str, asked: dict[str, Any], words: str
) -> None:
    response = post(dataplane, way, **asked)
    assert (response.status_code, words in response.json()["error"]) == (400, True)


def test_a_model_that_does_not_generate_says_so(make_artifact: Callable[..., Path]) -> None:
    plane = Dataplane("digits")
    plane.flip(Lineup("1", {"1": load_version("1", open_artifact(str(make_artifact(1))))}))
    response = post(plane, "generate", text_input="t")
    assert (response.status_code, "doesn't generate" in response.json()["error"]) == (400, True)
    assert post(plane, "versions/9/generate", text_input="t").status_code == 404


class Steps:
    """A generator of a's that waits for each of them until it may go on."""

    def __init__(self, after: Exception | None = None) -> None:
        self.may, self.after = threading.Semaphore(0), after
        self.begun, self.closed = threading.Event(), threading.Event()

    def __call__(self, text: str, parameters: Any) -> Generator[str, None, None]:
        self.begun.set()
        try:
            while self.may.acquire(timeout=60):
                yield "a"
                if self.after:
                    raise self.after
        finally:
            self.closed.set()

    def of(self, dataplane: Dataplane) -> Dataplane:
        plane = Dataplane("letters")
        plane.flip(Lineup("1", {"1": replace(dataplane.choose(None), generate=self)}))
        return plane


class Borrowed(Dataplane):
    """A model that is in memory for as long as somebody holds it."""

    holders = 0

    @contextlib.asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        self.holders += 1
        try:
            yield
        finally:
            self.holders -= 1


@pytest.mark.parametrize("way", ["generate", "generate_stream"])
def test_a_model_is_held_until_its_last_piece(dataplane: Dataplane, way: str) -> None:
    plane, holders = Borrowed("letters"), []

    def count(text: str, parameters: Any) -> Generator[str, None, None]:
        for _ in range(3):
            holders.append(plane.holders)
            yield "a"

    plane.flip(Lineup("1", {"1": replace(dataplane.choose(None), generate=count)}))
    assert post(plane, way, text_input="t").status_code == 200
    assert (holders, plane.holders) == ([1, 1, 1], 0)


def test_a_request_that_is_cancelled_before_its_first_piece_answers_nothing(dataplane: Dataplane) -> None:
    async def ask() -> None:
        steps = Steps()
        plane = steps.of(dataplane)
        messages = [{"type": "http.request", "body": b'{"text_input": "t"}', "more_body": False}]

        async def receive() -> Any:
            return messages.pop() if messages else await asyncio.Future[Any]()

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {"type": "http", "method": "POST", "path": "/generate_stream", "headers": []}
        answering = asyncio.ensure_future(ModelApp(plane, None, 10_000)(scope, receive, send))
        await wait_until(steps.begun.is_set)
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering
        assert plane.generating.in_air == 0
        await wait_until(lambda: steps.may.release() or steps.closed.is_set())

    asyncio.run(ask())


def test_a_client_that_goes_before_the_first_piece_is_sent_holds_nothing(dataplane: Dataplane) -> None:
    async def ask() -> None:
        steps = Steps()
        steps.may.release()
        plane = Borrowed("letters")
        plane.flip(Lineup("1", {"1": replace(dataplane.choose(None), generate=steps)}))
        messages = [{"type": "http.request", "body": b'{"text_input": "t"}', "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            return await asyncio.Future[Any]()

        async def send(message: Any) -> None:
            raise ConnectionResetError(message["type"])

        scope = {"type": "http", "method": "POST", "path": "/generate_stream", "headers": []}
        with pytest.raises(ConnectionResetError, match="start"):
            await ModelApp(plane, None, 10_000)(scope, receive, send)
        assert (plane.holders, plane.generating.in_air) == (0, 0)
        await wait_until(steps.closed.is_set)

    asyncio.run(ask())


def test_a_failure_in_the_middle_is_the_last_event_and_quotes_nobody(
    dataplane: Dataplane, caplog: pytest.LogCaptureFixture
) -> None:
    failures = (InvalidRequest("no further"), "no further."), (ValueError("a secret"), "the model failed: ValueError")
    for error, words in failures:
        steps = Steps(after=error)
        steps.may.release()
        first, last = events(post(steps.of(dataplane), "generate_stream", text_input="t"))
        assert (first["text_output"], last) == ("a", {"error": words})
    assert "generating for letters failed: ValueError" in caplog.text
    assert "a secret" not in caplog.text


def test_a_client_that_goes_away_ends_its_generation(dataplane: Dataplane) -> None:

    async def ask(way: str, pieces: int) -> None:
        steps = Steps()
        plane = steps.of(dataplane)
        gone, sent = asyncio.Event(), asyncio.Event()
        app = ModelApp(plane, None, 10_000)
        messages = [{"type": "http.request", "body": b'{"text_input": "t"}', "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                sent.set()

        scope = {"type": "http", "method": "POST", "path": f"/{way}", "headers": []}
        answering = asyncio.ensure_future(app(scope, receive, send))
        await wait_until(steps.begun.is_set)
        if pieces:
            steps.may.release(pieces)
            await asyncio.wait_for(sent.wait(), 60)
        gone.set()
        await wait_until(lambda: steps.may.release() or answering.done())  # the step that is under way ends
        await answering
        assert (app.in_air, plane.generating.in_air) == (0, 0)
        await wait_until(lambda: steps.may.release() or steps.closed.is_set())

    for way, pieces in (("generate_stream", 1), ("generate_stream", 0), ("generate", 0)):
        asyncio.run(ask(way, pieces))


def test_generations_are_bounded_in_number_and_in_time(dataplane: Dataplane) -> None:
    steps = Steps()
    loaded = steps.of(dataplane).choose(None)
    generating = Generating(most=1)

    async def first(prompt: Prompt) -> str:
        pieces = generating.pieces("letters", loaded, prompt)
        try:
            return await anext(pieces)
        finally:
            await pieces.aclose()

    async def run() -> None:
        one = asyncio.ensure_future(first(Prompt("t", {})))
        await wait_until(lambda: generating.in_air == 1)
        with pytest.raises(TryLater, match="too many"):
            await first(Prompt("t", {}))
        steps.may.release()
        assert await one == "a"
        late = asyncio.ensure_future(first(Prompt("t", {"timeout": 1})))
        steps.may.release()
        with pytest.raises(Overloaded, match="within its time"):
            await late
        assert generating.in_air == 0

    asyncio.run(run())


def test_the_text_is_read_strictly() -> None:
    assert decode(b'{"text_input": "a", "parameters": {"b": 1}, "c": 2}') == Prompt("a", {"b": 1, "c": 2})
    with pytest.raises(InvalidRequest, match="not JSON"):
        decode(b"{")


@given(st.binary(max_size=50) | JSON.map(orjson.dumps))
def test_any_body_is_a_prompt_or_an_invalid_request(body: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert isinstance(decode(body).text, str)


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
