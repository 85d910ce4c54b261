"""What a model answers to proper requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from tidepool.conformance.case import Level, Skipped, Table, Transport, require
from tidepool.conformance.messages import Request, Response
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import Spec, Tensor, alike, rows

LARGE_ELEMENTS = 200_000
"""Elements of a large request: under a mebibyte of FP32, under the 4 MiB that gRPC takes by default in any datatype."""

rule = Table((Transport.REST, Transport.GRPC))


@rule(
    "infer.answer",
    Level.MUST,
    "Inference; Tensor Data",
    "a request that fits the metadata is answered with all outputs of the metadata, each of its datatype and shape",
)
def answer(session: Session) -> None:
    response = session.target.infer(session.request())
    require(response.model == session.model, "the answer names another model", response.model)
    _fits(session, response)


def _fits(session: Session, response: Response) -> None:
    told, seen = {spec.name: spec for spec in session.metadata.outputs}, {t.name: t for t in response.outputs}
    require(len(seen) == len(response.outputs), "an output comes twice", [t.name for t in response.outputs])
    require(seen.keys() == told.keys(), f"the outputs are not {', '.join(told)}", list(seen))
    for name, tensor in seen.items():
        require(tensor.datatype == told[name].datatype, f"{name} is not {told[name].datatype}", tensor.datatype)
        require(_shape_fits(told[name], tensor), f"{name} is not {list(told[name].shape)}", list(tensor.shape))


def _shape_fits(spec: Spec, tensor: Tensor) -> bool:
    if len(spec.shape) != len(tensor.shape):
        return False
    return all(told in (-1, seen) for told, seen in zip(spec.shape, tensor.shape, strict=True))


@rule("infer.id", Level.MUST, "Inference", "the id of a request comes back in its answer")
def id_(session: Session) -> None:
    _comes_back(session, "42")


@rule("infer.id-text", Level.SHOULD, "Inference", "so does an id with spaces, signs and letters beyond ASCII")
def id_text(session: Session) -> None:
    _comes_back(session, "a b/c?")
    _comes_back(session, "Gezeiten ≈ 潮")


def _comes_back(session: Session, id_: str) -> None:
    seen = session.infer(replace(session.request(), id=id_)).id
    require(seen == id_, f"id {id_!r} came back as", seen)


@rule("infer.version", Level.MUST, "Inference", "a request to a listed version is answered by that version")
def version(session: Session) -> None:
    for listed in session.versions[:3]:
        seen = session.infer(replace(session.request(), version=listed)).version
        require(seen == listed, f"version {listed} was asked for, the answer is of", seen or "none")


@rule("infer.version-named", Level.SHOULD, "Inference", "an answer names the version that gave it, if there are any")
def version_named(session: Session) -> None:
    seen = session.baseline.version
    require(seen in session.versions, f"the answer's version is not one of {session.versions}", seen or "none")


@rule("infer.outputs", Level.MUST, "Inference", "where outputs are asked for, those and no others come back")
def outputs(session: Session) -> None:
    for spec in session.metadata.outputs:
        response = session.infer(replace(session.request(), outputs=(spec.name,)))
        seen = [tensor.name for tensor in response.outputs]
        require(seen == [spec.name], f"{spec.name} was asked for, and came", seen)


@rule("infer.input-order", Level.SHOULD, "Inference", "inputs go by name, whatever their order")
def input_order(session: Session) -> None:
    request = session.request()
    if len(request.inputs) < 2:
        raise Skipped("the model has one input")
    turned = session.infer(replace(request, inputs=request.inputs[::-1]))
    _alike(session.infer(request), turned, "another order of inputs changes")


@rule("infer.parameters", Level.SHOULD, "Parameters", "a parameter that the server doesn't know does no harm")
def parameters(session: Session) -> None:
    unknown = {"x-flag": True, "x-count": 3, "x-text": "a"}
    response = session.infer(replace(session.request(), parameters=unknown))
    _alike(session.baseline, response, "unknown parameters change")


@rule("infer.repeat", Level.SHOULD, "Inference", "the same request gets the same answer, time after time")
def repeat(session: Session) -> None:
    for _ in range(5):
        _alike(session.baseline, session.infer(session.request()), "a repeated request changes")


@rule("infer.rows", Level.SHOULD, "Inference", "a batch holds a row for each of its rows, the same as alone")
def batch(session: Session) -> None:
    if not session.batched:
        raise Skipped("the first axis of a tensor is not free")
    whole = session.infer(session.request(rows=5))
    for tensor in whole.outputs:
        require(tensor.shape[0] == 5, f"5 rows went in, {tensor.name} has", list(tensor.shape))
    for at in range(5):
        alone = session.infer(_row(session.request(rows=5), at))
        for tensor, single in zip(whole.outputs, alone.outputs, strict=True):
            same = alike(rows(tensor, at), rows(single, 0))
            require(same, f"row {at} of {tensor.name} is different alone", (rows(tensor, at), rows(single, 0)))


def _row(request: Request, at: int) -> Request:
    inputs = (Tensor(t.name, t.datatype, (1, *t.shape[1:]), rows(t, at)) for t in request.inputs)
    return replace(request, inputs=tuple(inputs))


@rule("infer.large", Level.SHOULD, "Inference", "a request of some hundred thousand elements is answered")
def large(session: Session) -> None:
    if not session.batched:
        raise Skipped("the first axis of a tensor is not free")
    elements = sum(len(tensor.values) for tensor in session.request().inputs)
    count = max(2, LARGE_ELEMENTS // elements)
    response = session.infer(session.request(rows=count))
    for tensor in response.outputs:
        require(tensor.shape[0] == count, f"{count} rows went in, {tensor.name} has", list(tensor.shape))


@rule("infer.concurrent", Level.SHOULD, "Inference", "requests at the same time get each its own answer")
def concurrent(session: Session) -> None:
    requests = [replace(session.request(seed=seed), id=str(seed)) for seed in range(16)]
    alone = [session.infer(request) for request in requests]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(session.infer, requests))
    for one, other in zip(alone, together, strict=True):
        require(one.id == other.id, f"the answer to request {one.id} has id", other.id)
        _alike(one, other, "company changes")


def _alike(one: Response, other: Response, what: str) -> None:
    seen = {tensor.name: tensor for tensor in other.outputs}
    for tensor in one.outputs:
        require(tensor.name in seen, f"{what} the outputs: one is missing", tensor.name)
        same = tensor.shape == seen[tensor.name].shape and alike(tensor.values, seen[tensor.name].values)
        require(same, f"{what} output {tensor.name}", (tensor.values, seen[tensor.name].values))
