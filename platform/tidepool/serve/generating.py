"""Text that a model generates piece by piece: Triton's generate extension, whole or as server-sent events.

A piece is a step of the recipe's own generator. All steps of a replica happen in one thread, one after another, so that
generations take turns, and the event loop is free for those who want answers.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_generate.md
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from tidepool.errors import InvalidRequest, Overloaded, TidepoolError
from tidepool.serve import protocol
from tidepool.serve.body import Body
from tidepool.serve.masking import outline
from tidepool.serve.protocol import Parameters
from tidepool.serve.queueing import try_later

if TYPE_CHECKING:
    from tidepool.serve.dataplane import LoadedVersion

log = logging.getLogger(__name__)

MOST_AT_ONCE, MOST_PIECES = 16, 4096
"""Generations of a replica in the air, and pieces of one of them."""

Pieces = AsyncGenerator[str, None]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request for text."""

    text: str
    parameters: Parameters
    id: str | None = None


def decode(body: Body) -> Prompt:
    """The request in a body: `{"text_input": "...", "parameters": {...}}`; other fields count as parameters.

    Raises:
        InvalidRequest: it isn't one.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest("the body is not JSON", seen=str(error)) from None
    if not isinstance(document, dict) or not isinstance(document.get("text_input"), str):
        raise InvalidRequest("the request has no text_input", allowed='{"text_input": "..."}')
    parameters, id_ = document.get("parameters"), document.get("id")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest("parameters is not an object", seen=type(parameters).__name__)
    if id_ is not None and not isinstance(id_, str):
        raise InvalidRequest("id is not a string", seen=id_)
    others = {name: value for name, value in document.items() if name not in ("text_input", "parameters", "id")}
    together = {**others, **(parameters or {})}
    protocol.check_parameters(together)
    return Prompt(document["text_input"], together, id_)


class Generating:
    """The generations of one replica."""

    def __init__(self, most: int = MOST_AT_ONCE) -> None:
        self._most, self._thread = most, ThreadPoolExecutor(1, "generate")
        self.in_air = 0
        """Generations that have begun and haven't ended."""
        self.ran_s = 0.0
        """Seconds for which steps have run."""

    async def pieces(self, model: str, loaded: LoadedVersion, prompt: Prompt) -> Pieces:
        """The text that `loaded` generates. Whoever closes it ends the generation with its present step.

        Raises:
            InvalidRequest: the model doesn't generate, or the recipe says so of the request.
            TryLater: there are too many generations.
            Overloaded: its own deadline has passed.
        """
        if loaded.generate is None:
            raise InvalidRequest(f"{model} doesn't generate: its recipe has no method for it", allowed="infer, explain")
        if self.in_air >= self._most:
            raise try_later("too many generations", 1.0, seen=f"{self.in_air} in the air")
        _, timeout_s = protocol.urgency(prompt.parameters)
        deadline = time.monotonic() + timeout_s if timeout_s else math.inf
        loop, steps = asyncio.get_running_loop(), loaded.generate(prompt.text, prompt.parameters)
        self.in_air += 1
        try:
            for _ in range(MOST_PIECES):
                piece = await loop.run_in_executor(self._thread, self._step, steps)
                if piece is None:
                    return
                if time.monotonic() > deadline:
                    raise Overloaded("the text isn't whole within its time", seen=f"{timeout_s:g} s")
                yield piece
        finally:
            self.in_air -= 1
            self._thread.submit(steps.close)  # after a step that may still be under way

    def _step(self, steps: Generator[str, None, None]) -> str | None:
        began = time.perf_counter()
        try:
            return next(steps, None)
        finally:
            self.ran_s += time.perf_counter() - began


@dataclass(frozen=True)
class Generation:
    """A text in the making: which version of which model generates it, for whom, and its pieces as they come."""

    model: str
    loaded: LoadedVersion
    prompt: Prompt
    pieces: Pieces

    async def whole(self) -> bytes:
        """The answer to `generate`: all pieces in one. Raises what `Generating.pieces` does."""
        return orjson.dumps(self._said("".join([piece async for piece in self.pieces])))

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer to `generate_stream`, an event for each piece, once there is a first one. What fails later is an
        event too. Whoever asked closes `pieces`. Raises what `Generating.pieces` does.
        """
        first = await anext(self.pieces, None)

        async def events() -> AsyncGenerator[bytes, None]:
            if first is not None:
                yield _event(self._said(first))
            try:
                async for piece in self.pieces:
                    yield _event(self._said(piece))
            except TidepoolError as error:
                yield _event({"error": str(error)})
            except Exception as error:
                log.error("generating for %s failed: %s", self.model, outline(error))
                yield _event({"error": f"the model failed: {type(error).__name__}"})

        return events()

    def _said(self, text: str) -> dict[str, Any]:
        version, digest = self.loaded.version, self.loaded.digest
        said = {"model_name": self.model, "model_version": version, "text_output": text}
        about = {"parameters": {"digest": digest}}
        return {**said, **about} if self.prompt.id is None else {"id": self.prompt.id, **said, **about}


def _event(document: dict[str, Any]) -> bytes:
    """One server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html"""
    return b"data: %b\n\n" % orjson.dumps(document)
