"""A server that breaks one rule of gRPC at a time: each is caught by the case of that rule."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from tidepool.conformance.case import Case, Transport
from tidepool.conformance.cases import CASES
from tidepool.conformance.runner import Verdict, check
from tidepool.serve._pb2 import open_inference_pb2 as pb

Mutant = Callable[[str, Any, Any], Awaitable[Any]]
"""Gets a call's name, its request, and `ask`, which has the good server's answer; see conftest.py."""
OF_THE_LIBRARY = {"grpc.garbage", "grpc.unknown-call", "grpc.deadline", "grpc.reflection"}
"""Rules that grpcio keeps for every server made with it."""
CANNED: list[Any] = []
"""Proper answers."""


def nth() -> Callable[[Any], bool]:
    """True from the fifth time on."""
    count = iter(range(10**9))
    return lambda asked: next(count) > 3


def calls(name: str, answer: Callable[[Any, Any], Any], when: Callable[[Any], bool] = lambda request: True) -> Mutant:
    """Change the answer of one call: `answer` gets it and the request."""

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        told = await ask()
        return answer(told, request) if called == name and when(request) else told

    return mutant


def edited(
    edit: Callable[[Any], Any], name: str = "ModelInfer", when: Callable[[Any], bool] = lambda r: True
) -> Mutant:
    """Edit the answer of one call in place."""

    def answer(told: Any, request: Any) -> Any:
        if not isinstance(told, tuple):
            edit(told)
        return told

    return calls(name, answer, when)


def declining(when: Callable[[Any], bool], code: grpc.StatusCode = grpc.StatusCode.INVALID_ARGUMENT) -> Mutant:
    """Refuse proper requests."""

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        return (code, "no") if called == "ModelInfer" and when(request) else await ask()

    return mutant


def failing(code: grpc.StatusCode, details: str) -> Mutant:
    """Give every error another code and other details."""

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        answer = await ask()
        return (code, details) if called == "ModelInfer" and isinstance(answer, tuple) else answer

    return mutant


async def indulgent(called: str, request: Any, ask: Any) -> Any:
    """Answer whatever is wrong with the answer to something right."""
    answer = await ask()
    if called == "ModelInfer" and not isinstance(answer, tuple):
        CANNED.append(answer)
    return CANNED[-1] if called == "ModelInfer" and isinstance(answer, tuple) else answer


def with_company() -> Mutant:
    present = 0

    async def slow_mixture(called: str, request: Any, ask: Any) -> Any:
        nonlocal present
        present += 1
        await asyncio.sleep(0.02)
        answer = await ask()
        crowded, present = present > 1, present - 1
        if crowded and called == "ModelInfer":
            answer.id = "of another"
        return answer

    return slow_mixture


def mortal() -> Mutant:
    dead = False

    async def mutant(called: str, request: Any, ask: Any) -> Any:
        nonlocal dead
        answer = await ask()
        refused = isinstance(answer, tuple)
        dead = dead or refused
        return (grpc.StatusCode.INTERNAL, "dead") if dead and not refused else answer

    return mutant


def shift(answer: Any) -> None:
    first = answer.outputs[0].contents.fp32_contents
    first[:] = [value + 1 for value in first]


def set_field(name: str, value: Any) -> Callable[[Any], None]:
    return lambda answer: setattr(answer, name, value)


def both_forms(answer: Any) -> None:
    answer.outputs[0].contents.fp32_contents.append(0)


def keep_all(answer: Any) -> None:
    answer.outputs.append(answer.outputs[0])


METADATA = pb.ModelMetadataResponse(name="many")
ready, unready = pb.ModelReadyResponse(ready=True), pb.ModelReadyResponse()

GRPC_MUTANTS: dict[str, Mutant] = {
    "health.live": calls("ServerLive", lambda told, asked: pb.ServerLiveResponse()),
    "health.ready": calls("ServerReady", lambda told, asked: pb.ServerReadyResponse()),
    "health.model": calls("ModelReady", lambda told, asked: unready),
    "health.version": calls("ModelReady", lambda told, asked: unready, lambda asked: asked.version == "2"),
    "health.unknown-model": calls("ModelReady", lambda told, asked: ready),
    "health.unknown-version": calls("ModelReady", lambda told, asked: ready),
    "server.metadata": calls("ServerMetadata", lambda told, asked: pb.ServerMetadataResponse()),
    "model.metadata": edited(set_field("name", "x"), "ModelMetadata"),
    "model.platform": edited(set_field("platform", "x"), "ModelMetadata"),
    "model.tensors": edited(lambda told: told.ClearField("inputs"), "ModelMetadata"),
    "model.version": edited(
        lambda told: told.ClearField("versions"), "ModelMetadata", lambda asked: asked.version != ""
    ),
    "model.unknown": calls("ModelMetadata", lambda told, asked: METADATA),
    "model.unknown-version": calls("ModelMetadata", lambda told, asked: METADATA if isinstance(told, tuple) else told),
    "infer.answer": edited(lambda told: told.outputs.pop()),
    "infer.id": edited(set_field("id", "")),
    "infer.id-text": edited(set_field("id", "a b/c?")),
    "infer.version": edited(set_field("model_version", "2")),
    "infer.version-named": edited(set_field("model_version", "")),
    "infer.outputs": edited(keep_all, when=lambda asked: bool(asked.outputs)),
    "infer.input-order": edited(shift, when=lambda asked: asked.inputs[0].name != "a"),
    "infer.parameters": declining(lambda asked: bool(asked.parameters)),
    "infer.repeat": edited(shift, when=nth()),
    "infer.rows": edited(shift, when=lambda asked: asked.inputs[0].shape[0] > 1),
    "infer.large": declining(lambda asked: asked.ByteSize() > 100_000),
    "infer.concurrent": with_company(),
    "wrong.blame": failing(grpc.StatusCode.INTERNAL, "no"),
    "wrong.message": failing(grpc.StatusCode.INVALID_ARGUMENT, ""),
    "wrong.then-right": mortal(),
    "grpc.raw": declining(lambda asked: bool(asked.raw_input_contents)),
    "grpc.as-rest": edited(shift),
    "grpc.one-form": edited(both_forms, when=lambda asked: bool(asked.raw_input_contents)),
    "grpc.parameters": declining(lambda asked: bool(asked.parameters)),
    "grpc.not-found": failing(grpc.StatusCode.UNKNOWN, "no"),
    "grpc.gzip": declining(lambda asked: bool(asked.raw_input_contents), grpc.StatusCode.INTERNAL),
}
GRPC_MUTANTS |= {
    case.id: indulgent
    for case in CASES
    if case.id.startswith(("wrong.", "grpc.both-forms", "grpc.raw-", "grpc.field")) and case.id not in GRPC_MUTANTS
}


@pytest.fixture(scope="module", autouse=True)
def mutants(server: Any) -> None:
    """The server's mutants are these."""
    server.grpc_mutants.update(GRPC_MUTANTS)


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.id) for c in CASES if Transport.GRPC in c.transports and c.id not in OF_THE_LIBRARY],
)
def test_a_server_that_breaks_a_rule_of_grpc_is_caught(server: Any, case: Case) -> None:
    outcome = check(case, server.rpc(mutant=case.id))
    assert outcome.verdict is Verdict.FAIL, outcome.reason
