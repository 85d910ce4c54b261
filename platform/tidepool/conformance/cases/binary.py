"""The binary tensor data extension over REST: raw tensors after the JSON, which the commonest clients send."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx

from tidepool.conformance import rest, tensors
from tidepool.conformance.case import Failed, Level, Skipped, Table, Transport, require
from tidepool.conformance.cases.documents import half
from tidepool.conformance.messages import Refused, Request, Response
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import alike

SECTION = "Triton: Binary Tensor Data"

rule = Table((Transport.REST,))


@rule("binary.input", Level.EXTENSION, SECTION, "raw inputs mean the same as inputs in JSON")
def raw_input(session: Session) -> None:
    session.need_json()
    _agrees(session, _post(session, session.request(), raw_inputs=True))


@rule("binary.output", Level.EXTENSION, SECTION, "binary_data on an asked output makes that output raw, no other")
def raw_output(session: Session) -> None:
    request = replace(session.request(), outputs=tuple(spec.name for spec in session.metadata.outputs))
    for wanted in request.outputs:
        outputs = [{"name": name, "parameters": {"binary_data": name == wanted}} for name in request.outputs]
        response = _post(session, request, raw_inputs=half(session), outputs=outputs)
        require(_raw_names(response) == {wanted}, f"{wanted} was wanted raw, raw came", _raw_names(response))
        _agrees(session, response)


@rule("binary.output-all", Level.EXTENSION, SECTION, "binary_data_output on the request makes every output raw")
def raw_outputs(session: Session) -> None:
    parameters = {"binary_data_output": True}
    response = _post(session, session.request(), raw_inputs=half(session), parameters=parameters)
    names = {spec.name for spec in session.metadata.outputs}
    require(_raw_names(response) == names, f"raw were wanted {names}, raw came", _raw_names(response))
    _agrees(session, response)


@rule("binary.override", Level.EXTENSION, SECTION, "binary_data on an output goes before binary_data_output")
def override(session: Session) -> None:
    spec = session.metadata.outputs[0]
    if spec.datatype == "FP16":
        raise Skipped("the first output is FP16, which has no JSON form")
    request = replace(session.request(), outputs=(spec.name,))
    outputs = [{"name": spec.name, "parameters": {"binary_data": False}}]
    parameters = {"binary_data_output": True}
    response = _post(session, request, raw_inputs=half(session), outputs=outputs, parameters=parameters)
    require(_raw_names(response) == set(), "an output came raw against binary_data: false", _raw_names(response))


@rule("binary.mixed", Level.EXTENSION, SECTION, "some inputs may be raw and others in the JSON")
def mixed(session: Session) -> None:
    session.need_json()
    request = session.request()
    if len(request.inputs) < 2:
        raise Skipped("the model has one input")
    document = rest.inference_document(request)
    raw = tensors.to_raw(request.inputs[-1])
    del document["inputs"][-1]["data"]
    document["inputs"][-1]["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps(document).encode()
    _agrees(session, session.rest.post_infer(request, head + raw, len(head)))


@rule("binary.content-type", Level.EXTENSION, SECTION, "an answer with raw tensors is application/octet-stream")
def content_type(session: Session) -> None:
    parameters = {"binary_data_output": True}
    response = _post(session, session.request(), raw_inputs=half(session), parameters=parameters)
    kind = rest.accepted(response).headers.get("content-type", "none")
    require(kind.startswith("application/octet-stream"), "an answer with raw tensors has content type", kind)


@rule("binary.header", Level.EXTENSION, SECTION, "a header length that isn't that of the JSON is refused")
def header(session: Session) -> None:
    _advertised(session)
    body, length = rest.encode(session.request(), raw_inputs=True)
    assert length is not None
    for lie in (len(body) + 1, length - 1, length + 1, "x", "-1", ""):
        _refused(session, body, lie, f"a header length of {lie!r} instead of {length}")


@rule("binary.no-header", Level.EXTENSION, SECTION, "raw tensors without the header are refused")
def no_header(session: Session) -> None:
    _advertised(session)
    body, _ = rest.encode(session.request(), raw_inputs=True)
    _refused(session, body, None, "a body with raw tensors and no header")


@rule("binary.size", Level.EXTENSION, SECTION, "a binary_data_size that doesn't fit shape and body is refused")
def size(session: Session) -> None:
    _advertised(session)
    request = session.request()
    right = len(tensors.to_raw(request.inputs[0]))
    for lie in (right + 1, right - 1, -1, 2**40, "8", True):
        body, length = _sized(request, lie)
        _refused(session, body, length, f"binary_data_size {lie!r} instead of {right}")


@rule("binary.left-over", Level.EXTENSION, SECTION, "bytes after the last tensor are refused")
def left_over(session: Session) -> None:
    _advertised(session)
    body, length = rest.encode(session.request(), raw_inputs=True)
    _refused(session, body + b"\0\0", length, "a body with two bytes too many")


@rule("binary.elements", Level.EXTENSION, SECTION, "BYTES elements that are longer than their tensor are refused")
def elements(session: Session) -> None:
    _advertised(session)
    request = session.request()
    at = next((i for i, tensor in enumerate(request.inputs) if tensor.datatype == "BYTES"), None)
    if at is None:
        raise Skipped("no input is BYTES")
    body, length = rest.encode(request, raw_inputs=True)
    assert length is not None
    start = length + sum(len(tensors.to_raw(tensor)) for tensor in request.inputs[:at])
    _refused(session, body[:start] + b"\xff\xff\xff\x7f" + body[start + 4 :], length, "an element of 2 GiB")


def _advertised(session: Session) -> None:
    session.need_extension("binary_tensor_data")
    _ = session.baseline


def _post(session: Session, request: Request, *, raw_inputs: bool, **members: Any) -> httpx.Response:
    """The answer to a request with other members in its JSON."""
    _advertised(session)
    document = rest.inference_document(request) | members
    raw = [tensors.to_raw(tensor) for tensor in request.inputs] if raw_inputs else []
    for tensor, data in zip(document["inputs"], raw, strict=False):
        del tensor["data"]
        tensor["parameters"] = {"binary_data_size": len(data)}
    head = json.dumps(document).encode()
    return session.rest.post_infer(request, head + b"".join(raw), len(head) if raw else None)


def _sized(request: Request, size: Any) -> tuple[bytes, int]:
    """A raw request whose first input has that binary_data_size."""
    body, length = rest.encode(request, raw_inputs=True)
    assert length is not None
    document = json.loads(body[:length])
    document["inputs"][0]["parameters"]["binary_data_size"] = size
    head = json.dumps(document).encode()
    return head + body[length:], len(head)


def _raw_names(response: httpx.Response) -> set[str]:
    """Names of the outputs that came as raw bytes."""
    content = rest.accepted(response).content
    length = response.headers.get(rest.JSON_LENGTH, str(len(content)))
    outputs = json.loads(content[: int(length)])["outputs"]
    return {o["name"] for o in outputs if "binary_data_size" in (o.get("parameters") or {})}


def _agrees(session: Session, response: httpx.Response) -> None:
    """Check that an answer is that of the baseline."""
    answer: Response = rest.decode(response)
    expected = {tensor.name: tensor for tensor in session.baseline.outputs}
    for tensor in answer.outputs:
        same = tensor.name in expected and alike(tensor.values, expected[tensor.name].values)
        require(same, f"output {tensor.name} is not that of the request in JSON", tensor.values)


def _refused(session: Session, body: bytes, length: int | str | None, what: str) -> None:
    try:
        rest.decode(session.rest.post_infer(session.request(), body, length))
    except Refused as refused:
        require(refused.blames_client, f"{what} made the server fail", f"{refused.status} {refused.message}")
        return
    raise Failed(f"{what} was answered as if nothing were wrong")
