"""What a server does with requests that are wrong, over either transport."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tidepool.conformance.case import Failed, Level, Skipped, Table, Transport, require
from tidepool.conformance.cases.health import UNKNOWN
from tidepool.conformance.messages import Refused, Request
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import Tensor

rule = Table((Transport.REST, Transport.GRPC))

Wrong = Callable[[Session], Request]
WRONG: dict[str, Wrong] = {}
"""Makes each kind of wrong request."""


def _wrong(id: str, level: Level, section: str, says: str) -> Callable[[Wrong], Wrong]:
    """Add a kind of wrong request, and the case that it is refused."""

    def add(make: Wrong) -> Wrong:
        def check(session: Session) -> None:
            request = make(session)
            try:
                session.infer(request)
            except Refused:
                return
            raise Failed("the server answered as if nothing were wrong")

        WRONG[id] = make
        rule(id, level, section, says)(check)
        return make

    return add


def _first(session: Session, **changes: object) -> Request:
    """A request whose first input is changed."""
    request = session.request()
    first = replace(request.inputs[0], **changes)  # type: ignore[arg-type]
    return replace(request, inputs=(first, *request.inputs[1:]))


@_wrong("wrong.model", Level.MUST, "Inference", "a model that the server doesn't have is an error")
def model(session: Session) -> Request:
    return replace(session.request(), model=UNKNOWN)


@_wrong("wrong.version", Level.MUST, "Inference", "a version that the server doesn't have is an error")
def version(session: Session) -> Request:
    _ = session.versions
    return replace(session.request(), version=UNKNOWN)


@_wrong("wrong.no-inputs", Level.MUST, "Model Metadata", "a request without the model's inputs is refused")
def no_inputs(session: Session) -> Request:
    return replace(session.request(), inputs=())


@_wrong("wrong.missing-input", Level.MUST, "Model Metadata", "a request that lacks one of the inputs is refused")
def missing_input(session: Session) -> Request:
    request = session.request()
    if len(request.inputs) < 2:
        raise Skipped("the model has one input")
    return replace(request, inputs=request.inputs[1:])


@_wrong("wrong.name", Level.SHOULD, "Model Metadata", "an input whose name is not the model's is refused")
def name(session: Session) -> Request:
    return _first(session, name=UNKNOWN)


@_wrong("wrong.extra-input", Level.SHOULD, "Model Metadata", "an input that the model doesn't have is refused")
def extra_input(session: Session) -> Request:
    request = session.request()
    return replace(request, inputs=(*request.inputs, replace(request.inputs[0], name=UNKNOWN)))


@_wrong("wrong.twice", Level.SHOULD, "Inference", "an input that comes twice is refused")
def twice(session: Session) -> Request:
    request = session.request()
    return replace(request, inputs=(*request.inputs, request.inputs[0]))


@_wrong("wrong.output", Level.SHOULD, "Inference", "a request for an output that the model doesn't have is refused")
def output(session: Session) -> Request:
    return replace(session.request(), outputs=(UNKNOWN,))


@_wrong("wrong.datatype", Level.SHOULD, "Model Metadata", "an input of another datatype than the model's is refused")
def datatype(session: Session) -> Request:
    first = session.request().inputs[0]
    if first.datatype == "BYTES":
        return _first(session, datatype="INT32", values=[0] * len(first.values))
    return _first(session, datatype="BYTES", values=[b"a"] * len(first.values))


@_wrong("wrong.no-such-datatype", Level.MUST, "Tensor Data Types", "a datatype that doesn't exist is refused")
def no_such_datatype(session: Session) -> Request:
    first = session.request().inputs[0]
    if first.datatype == "FP16":
        raise Skipped("the first input is FP16, which is sent raw")
    return _first(session, datatype="FP31", values=[0.5] * len(first.values))


@_wrong("wrong.rank", Level.SHOULD, "Model Metadata", "an input with an axis too many is refused")
def rank(session: Session) -> Request:
    return _first(session, shape=(*session.request().inputs[0].shape, 1))


@_wrong("wrong.shape", Level.SHOULD, "Model Metadata", "an input longer than the model's along a fixed axis is refused")
def shape(session: Session) -> Request:
    first, spec = session.request().inputs[0], session.metadata.inputs[0]
    fixed = [axis for axis, length in enumerate(spec.shape) if length > 0]
    if not fixed:
        raise Skipped("the first input has no fixed axis")
    longer = tuple(length * 2 if axis == fixed[-1] else length for axis, length in enumerate(first.shape))
    return _first(session, shape=longer, values=list(first.values) * 2)


@_wrong("wrong.negative-shape", Level.MUST, "Inference", "a shape with a negative length is refused")
def negative_shape(session: Session) -> Request:
    return _first(session, shape=tuple(-length for length in session.request().inputs[0].shape))


@_wrong("wrong.too-few", Level.MUST, "Tensor Data", "fewer elements than the shape has are refused")
def too_few(session: Session) -> Request:
    return _first(session, values=list(session.request().inputs[0].values)[:-1])


@_wrong("wrong.too-many", Level.MUST, "Tensor Data", "more elements than the shape has are refused")
def too_many(session: Session) -> Request:
    values = list(session.request().inputs[0].values)
    return _first(session, values=[*values, values[0]])


@_wrong("wrong.rows", Level.SHOULD, "Model Metadata", "inputs that differ in their number of rows are refused")
def rows(session: Session) -> Request:
    request = session.request()
    if len(request.inputs) < 2 or not session.batched:
        raise Skipped("the model has one input, or no free first axis")
    first: Tensor = session.request(rows=2).inputs[0]
    return replace(request, inputs=(first, *request.inputs[1:]))


@_wrong("wrong.huge-shape", Level.SHOULD, "Tensor Data", "a shape far beyond the data is refused, and harms nobody")
def huge_shape(session: Session) -> Request:
    first = session.request().inputs[0]
    return _first(session, shape=tuple(2**30 for _ in first.shape))


@_wrong("wrong.many-axes", Level.SHOULD, "Tensor Data", "a shape with a hundred axes is refused, and harms nobody")
def many_axes(session: Session) -> Request:
    return _first(session, shape=(*session.request().inputs[0].shape, *(1,) * 100))


@_wrong("wrong.empty-shape", Level.SHOULD, "Tensor Data", "a shape without elements, else huge, is refused")
def empty_shape(session: Session) -> Request:
    return _first(session, shape=(0, *(2**30,) * 9), values=[])


@rule("wrong.blame", Level.SHOULD, "Inference", "a refusal blames the request (4xx, INVALID_ARGUMENT), not the server")
def blame(session: Session) -> None:
    for id_, refused in _refusals(session):
        require(refused.blames_client, f"{id_} was refused with", f"{refused.status} {refused.message}")


@rule("wrong.message", Level.MUST, "Inference", 'a refusal says why: {"error": "..."} over REST, details over gRPC')
def message(session: Session) -> None:
    for id_, refused in _refusals(session):
        require(
            refused.well_formed, f"{id_} was refused without a proper message", f"{refused.status} {refused.message}"
        )


@rule("wrong.then-right", Level.SHOULD, "Inference", "a proper request is answered after all those wrong ones")
def then_right(session: Session) -> None:
    _refusals(session)
    session.infer(session.request())


def _refusals(session: Session) -> list[tuple[str, Refused]]:
    """The refusals of all wrong requests; those that are answered fail a case of their own."""
    seen = []
    for id_, make in WRONG.items():
        try:
            session.infer(make(session))
        except Refused as refused:
            seen.append((id_, refused))
        except Skipped:
            continue
    if not seen:
        raise Skipped("nothing was refused")
    return seen
