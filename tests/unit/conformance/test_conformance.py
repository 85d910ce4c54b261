"""The conformance suite and its command, against our own server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tidepool.artifact import open_artifact
from tidepool.conformance.__main__ import main
from tidepool.conformance.case import Case, Transport
from tidepool.conformance.cases import CASES
from tidepool.conformance.rest import RestTarget
from tidepool.conformance.runner import Verdict, check
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import DATATYPES, Spec, checked, from_raw, make, to_raw
from tidepool.serve.dataplane import Dataplane, Lineup, load_version


def pairs() -> list[Any]:
    return [
        pytest.param(case, transport, id=f"{transport}-{case.id}") for case in CASES for transport in case.transports
    ]


@pytest.mark.parametrize(("case", "transport"), pairs())
def test_our_server_keeps_every_rule(server: Any, case: Case, transport: Transport) -> None:
    outcome = check(case, server.session(transport))
    assert (outcome.verdict, outcome.reason) == (Verdict.PASS, "")


@pytest.mark.parametrize("transport", Transport)
def test_a_model_with_half_precision_breaks_no_rule(server: Any, transport: Transport) -> None:
    session = server.session(transport, "half")
    failed = [
        (c.id, o.reason) for c in CASES if transport in c.transports and (o := check(c, session)).verdict == "FAIL"
    ]
    assert failed == []


def test_a_registered_model_breaks_no_rule(
    serve: Any, make_artifact: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plane = Dataplane("digits")
    plane.flip(Lineup("1", {"1": load_version("1", open_artifact(str(make_artifact(1))))}))
    with serve([plane]) as running:
        arguments = [running.url, "--grpc", running.grpc, "--model", "digits", "--strict"]
        assert main([*arguments, "--junit", str(tmp_path / "junit.xml")]) == 0
        table = capsys.readouterr().out
        assert main([*arguments, "--json", "--case", "infer.*"]) == 0
    assert "pass  MUST       infer.answer" in table
    outcomes = json.loads(capsys.readouterr().out)
    assert {outcome["verdict"] for outcome in outcomes} <= {"pass", "skip"}
    assert {outcome["transport"] for outcome in outcomes} == {"REST", "gRPC"}
    assert ElementTree.parse(tmp_path / "junit.xml").getroot().get("failures") == "0"


def test_a_broken_must_fails_the_run_and_a_broken_should_only_a_strict_one(
    server: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forgetful(asked: Any, ask: Any) -> Any:
        return (await ask(asked)).changed(lambda document: {**document, "id": "another"})

    async def strict(asked: Any, ask: Any) -> Any:
        typed = not asked.infers or b"content-type" in asked.headers
        return await ask(asked) if typed else asked.told(415, {"error": "no"})

    server.rest_mutants.update({"forgetful": forgetful, "strict": strict})

    def run(case: str, mutant: str, *more: str) -> int:
        return main([server.url, "--model", "many", "--case", case, "--header", f"X-Mutant: {mutant}", *more])

    assert run("infer.id", "forgetful") == 1
    assert "seen: id '42' came back as: another" in capsys.readouterr().out
    assert run("json.untyped", "strict") == 0
    assert run("json.untyped", "strict", "--strict") == 1


def test_the_only_model_of_the_index_is_found(server: Any, serve: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([server.url]) == 2
    assert "the server lists many, half" in capsys.readouterr().err
    with serve([Dataplane("lonely")]) as running:
        assert main([running.url, "--case", "server.*"]) == 0


@pytest.mark.parametrize("arguments", [[], ["--grpc", "x:1"], ["http://127.0.0.1:1"]])
def test_without_server_or_model_nothing_is_checked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "conformance:" in capsys.readouterr().err


def test_a_dead_server_fails_instead_of_hanging() -> None:
    session = Session(RestTarget("http://127.0.0.1:1", {}, 1), "m")
    outcomes = {case.id: check(case, session) for case in CASES if Transport.REST in case.transports}
    assert outcomes["health.live"].verdict is Verdict.FAIL
    assert outcomes["infer.id"].verdict is Verdict.SKIP
    assert not any(outcome.verdict is Verdict.PASS for outcome in outcomes.values())


def test_a_request_of_ones_own_is_used(server: Any, tmp_path: Path) -> None:
    inputs = [
        {"name": "a", "datatype": "FP32", "shape": [1, 4], "data": [[1, 2, 3, 4]]},
        {"name": "n", "datatype": "INT8", "shape": [1, 2], "data": [1, 2]},
        {"name": "w", "datatype": "BYTES", "shape": [1], "data": ["é"]},
        {"name": "f", "datatype": "BOOL", "shape": [1, 1], "data": [True]},
        {"name": "u", "datatype": "UINT64", "shape": [1], "data": [7]},
    ]
    (tmp_path / "input.json").write_text(json.dumps({"inputs": inputs}))
    arguments = [server.url, "--grpc", server.grpc, "--model", "many", "--input", str(tmp_path / "input.json")]
    assert main([*arguments, "--strict"]) == 0


def test_every_rule_is_on_its_page_and_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "conformance.md").read_text()
    assert main(["--list"]) == 0
    assert capsys.readouterr().out.strip() in page
    assert len({case.id for case in CASES}) == len(CASES)


def test_made_up_inputs_are_exact_in_every_datatype() -> None:
    for datatype in DATATYPES:
        spec = Spec("x", datatype, (-1, 3, -1))
        tensor = make(spec, rows=2, seed=1)
        assert tensor.shape == (2, 3, 4)
        assert list(checked(tensor).values) == list(tensor.values)
        assert from_raw(replace(spec, shape=tensor.shape), to_raw(tensor)).values == tuple(tensor.values) or (
            datatype == "BYTES"
        )
