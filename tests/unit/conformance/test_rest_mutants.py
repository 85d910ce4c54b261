"""A server that breaks one rule of REST at a time: each is caught by the case of that rule."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from tidepool.conformance.case import Case, Transport
from tidepool.conformance.cases import CASES
from tidepool.conformance.runner import Verdict, check

Mutant = Callable[[Any, Any], Awaitable[Any]]
"""Gets a request and `ask`, which has the good server's answer to a request; see conftest.py."""

CANNED: dict[str, Any] = {}


def told(path_has: str, status: int, document: Any) -> Mutant:
    """Answer every path that has `path_has` in it so."""

    async def mutant(asked: Any, ask: Any) -> Any:
        return asked.told(status, document) if path_has in asked.path else await ask(asked)

    return mutant


def changed(change: Callable[[Any], Any], path_has: str = "") -> Mutant:
    """Change the JSON object of every proper answer."""

    async def mutant(asked: Any, ask: Any) -> Any:
        answer = await ask(asked)
        return answer.changed(change) if path_has in asked.path else answer

    return mutant


def refusing(wrong: Callable[[Any], bool], status: int = 400) -> Mutant:
    """Refuse proper inference requests that have something harmless about them."""

    async def mutant(asked: Any, ask: Any) -> Any:
        return asked.told(status, {"error": "no"}) if asked.infers and wrong(asked) else await ask(asked)

    return mutant


async def lenient(asked: Any, ask: Any) -> Any:
    """Answer whatever is wrong with the answer to something right."""
    answer = await ask(asked)
    if asked.infers and answer.status == 200 and b"inference-header-content-length" not in answer.headers:
        CANNED["infer"] = answer
    return CANNED["infer"] if asked.infers and answer.status != 200 else answer


def errors(change: Callable[[Any], Any]) -> Mutant:
    """Change every error."""

    async def mutant(asked: Any, ask: Any) -> Any:
        answer = await ask(asked)
        return change(answer) if answer.status >= 400 else answer

    return mutant


def without(*members: str) -> Callable[[Any], Any]:
    return lambda document: {key: value for key, value in document.items() if key not in members}


def forgetting(*, outputs: bool = False, output_parameters: bool = False, parameters: bool = False) -> Mutant:
    """Overlook parts of a request."""

    async def mutant(asked: Any, ask: Any) -> Any:
        document = asked.document()
        if not asked.infers or not isinstance(document, dict) or b"inference-header-content-length" in asked.headers:
            return await ask(asked)
        if outputs:
            document.pop("outputs", None)
        if parameters:
            document.pop("parameters", None)
        if output_parameters:
            document["outputs"] = [{"name": o["name"]} for o in document.get("outputs") or []]
        return await ask(replace(asked, body=json.dumps(document).encode()))

    return mutant


def shifted(document: Any) -> Any:
    """Other numbers in the first output."""
    first, *rest = document.get("outputs", [{"data": [0.0]}])
    return {**document, "outputs": [{**first, "data": [value + 1 for value in first["data"]]}, *rest]}


def shifting(when: Callable[[Any], bool]) -> Mutant:
    async def mutant(asked: Any, ask: Any) -> Any:
        answer = await ask(asked)
        return answer.changed(shifted) if asked.infers and when(asked) else answer

    return mutant


def nth() -> Callable[[Any], bool]:
    """True from the fourth time on."""
    count = iter(range(10**9))
    return lambda asked: next(count) > 3


def rows(asked: Any) -> int:
    return int(asked.document()["inputs"][0]["shape"][0])


def company() -> Mutant:
    """Mix up the ids of requests at the same time."""
    present = 0

    async def slow_mixture(asked: Any, ask: Any) -> Any:
        nonlocal present
        present += 1
        await asyncio.sleep(0.02)
        answer = await ask(asked)
        crowded, present = present > 1, present - 1
        return answer.changed(lambda document: {**document, "id": "of another"}) if crowded else answer

    return slow_mixture


def dying() -> Mutant:
    """Fail for good after a refusal."""
    dead = False

    async def mutant(asked: Any, ask: Any) -> Any:
        nonlocal dead
        answer = await ask(asked)
        dead = dead or answer.status >= 400
        return asked.told(500, {"error": "dead"}) if answer.status == 200 and dead else answer

    return mutant


def headed(name: bytes, value: bytes, status: int = 200) -> Mutant:
    async def mutant(asked: Any, ask: Any) -> Any:
        answer = await ask(asked)
        return replace(answer, headers={**answer.headers, name: value}) if answer.status >= status else answer

    return mutant


async def boastful(asked: Any, ask: Any) -> Any:
    """Announce an encoding that the answer isn't in."""
    answer = await ask(asked)
    accepted = asked.headers.get(b"accept-encoding")
    claimed = {b"content-encoding": accepted} if accepted == b"gzip" else {}
    return replace(answer, headers={**answer.headers, **claimed})


def nests(asked: Any) -> bool:
    return any(isinstance(tensor["data"][0], list) for tensor in asked.document()["inputs"])


METADATA = {"name": "many", "versions": ["1", "2"], "platform": "a_b", "inputs": [], "outputs": []}
no_tensors = changed(lambda d: {**d, "inputs": [{**t, "datatype": "FP31"} for t in d.get("inputs", [])]})

REST_MUTANTS: dict[str, Mutant] = {
    "health.live": told("/health/live", 503, {}),
    "health.ready": told("/health/ready", 503, {}),
    "health.model": told("many/ready", 503, {}),
    "health.version": told("versions/2/ready", 503, {}),
    "health.unknown-model": told("no-such-thing/ready", 200, {}),
    "health.unknown-version": told("no-such-thing/ready", 200, {}),
    "server.metadata": changed(lambda document: {}, "/v2"),
    "model.metadata": changed(lambda document: {**document, "name": "x"}),
    "model.platform": changed(lambda document: {**document, "platform": "x"}),
    "model.tensors": no_tensors,
    "model.version": changed(lambda document: {**document, "versions": ["9"]}, "/versions/"),
    "model.unknown": told("no-such-thing", 200, METADATA),
    "model.unknown-version": told("no-such-thing", 200, METADATA),
    "infer.answer": changed(lambda d: {**d, "outputs": d["outputs"][1:]} if "model_name" in d else d),
    "infer.id": changed(without("id")),
    "infer.id-text": changed(lambda document: {**document, "id": document.get("id", "").strip("潮")}),
    "infer.version": changed(lambda document: {**document, "model_version": "2"}, "/infer"),
    "infer.version-named": changed(without("model_version")),
    "infer.outputs": forgetting(outputs=True),
    "infer.input-order": shifting(lambda asked: asked.document()["inputs"][0]["name"] != "a"),
    "infer.parameters": refusing(lambda asked: "parameters" in asked.document()),
    "infer.repeat": shifting(nth()),
    "infer.rows": shifting(lambda asked: rows(asked) > 1),
    "infer.large": refusing(lambda asked: len(asked.body) > 100_000, 413),
    "infer.concurrent": company(),
    "wrong.blame": errors(lambda answer: replace(answer, status=500)),
    "wrong.message": errors(lambda answer: replace(answer, body=b'{"detail": "no"}')),
    "wrong.then-right": dying(),
    "json.nested": refusing(nests),
    "json.content-type": headed(b"content-type", b"text/plain"),
    "json.untyped": refusing(lambda asked: b"content-type" not in asked.headers, 415),
    "json.null-optional": refusing(lambda asked: "outputs" in asked.document()),
    "json.unknown-member": refusing(lambda asked: "x-unknown" in asked.document()),
    "json.kind": errors(lambda answer: replace(answer, status=500)),
    "json.blame": errors(lambda answer: replace(answer, status=500)),
    "http.error-shape": errors(lambda answer: replace(answer, body=b'{"detail": "no"}')),
    "http.method": errors(lambda answer: replace(answer, headers={})),
    "http.unknown-path": errors(lambda answer: replace(answer, status=400)),
    "http.chunked": refusing(lambda asked: b"transfer-encoding" in asked.headers, 411),
    "http.keep-alive": headed(b"connection", b"close", 400),
    "http.gzip": refusing(lambda asked: b"content-encoding" in asked.headers),
    "http.deflate": refusing(lambda asked: b"content-encoding" in asked.headers),
    "http.accept-encoding": boastful,
    "repository.index": told("/index", 200, [{"name": "many", "state": "UNAVAILABLE"}]),
    "binary.input": refusing(lambda asked: b"inference-header-content-length" in asked.headers),
    "binary.output": forgetting(output_parameters=True),
    "binary.output-all": forgetting(parameters=True),
    "binary.override": forgetting(output_parameters=True),
    "binary.mixed": refusing(lambda asked: b"inference-header-content-length" in asked.headers),
    "binary.content-type": headed(b"content-type", b"application/json"),
}
LENIENT = ("wrong.", "json.broken", "json.incomplete-input", "json.ragged", "json.nan", "json.range", "json.fraction")
LENIENT += (
    "http.broken-gzip",
    "binary.header",
    "binary.no-header",
    "binary.size",
    "binary.left-over",
    "binary.elements",
)
REST_MUTANTS |= {case.id: lenient for case in CASES if case.id.startswith(LENIENT) and case.id not in REST_MUTANTS}


@pytest.fixture(scope="module", autouse=True)
def mutants(server: Any) -> None:
    """The server's mutants are these."""
    server.rest_mutants.update(REST_MUTANTS)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id) for c in CASES if Transport.REST in c.transports])
def test_a_server_that_breaks_a_rule_of_rest_is_caught(server: Any, case: Case) -> None:
    outcome = check(case, server.rest(mutant=case.id))
    assert outcome.verdict is Verdict.FAIL, outcome.reason
