"""JSON: what a body may look like, and what must be refused. Rules that REST alone has."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable
from typing import Any

from tidepool.conformance import rest, tensors
from tidepool.conformance.case import Failed, Level, Skipped, Table, Transport, require
from tidepool.conformance.messages import Refused, Response
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import FLOATS, INTEGERS, alike

rule = Table((Transport.REST,))


@rule("json.nested", Level.MUST, "Tensor Data", "data may be nested along the shape, or flat; both mean the same")
def nested(session: Session) -> None:
    session.need_json()
    request = session.request(rows=2 if session.batched else 1)
    document = rest.inference_document(request)
    for head, tensor in zip(document["inputs"], request.inputs, strict=True):
        values = rest.json_values(tensor)
        head["data"] = tensors.nested(tensors.Tensor(tensor.name, tensor.datatype, tensor.shape, values))
    same(session.infer(request), infer(session, document), "nesting changes")


@rule("json.content-type", Level.SHOULD, "Inference", "JSON answers say that they are application/json")
def content_type(session: Session) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())
    bodies = {"an answer": body, "an error": b"{"}
    for what, content in bodies.items():
        response = session.rest.post_infer(session.request(), content)
        kind = response.headers.get("content-type", "none")
        require(kind.startswith("application/json"), f"{what} has content type", kind)


@rule("json.untyped", Level.SHOULD, "HTTP", "a body without a content type is taken as JSON")
def untyped(session: Session) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())
    path = f"{rest.model_path(session.model)}/infer"
    same(session.baseline, rest.decode(session.rest.send("POST", path, content=body)), "no content type changes")


@rule("json.null-optional", Level.SHOULD, "Inference", "an optional member that is null counts as absent")
def null_optional(session: Session) -> None:
    session.need_json()
    document = rest.inference_document(session.request()) | {"id": None, "outputs": None}
    same(session.baseline, infer(session, document), "a null member changes")


@rule("json.unknown-member", Level.SHOULD, "Inference", "a member that the protocol doesn't know does no harm")
def unknown_member(session: Session) -> None:
    session.need_json()
    document = rest.inference_document(session.request()) | {"model_name": session.model, "x-unknown": {"a": [1]}}
    same(session.baseline, infer(session, document), "an unknown member changes")


Bodies = dict[str, bytes]
BROKEN: list[Callable[[Session], Bodies]] = []
"""Each makes broken bodies, by what is wrong with them."""


def _broken(id: str, level: Level, section: str, says: str) -> Callable[[Callable[[Session], Bodies]], None]:
    """Add a kind of broken bodies, and the case that they are refused."""

    def add(make: Callable[[Session], Bodies]) -> None:
        def check(session: Session) -> None:
            for what, body in make(session).items():
                refused(session, body, what)

        BROKEN.append(make)
        rule(id, level, section, says)(check)

    return add


@_broken("json.broken", Level.MUST, "Inference", "a body that isn't a JSON object with inputs is refused")
def broken(session: Session) -> Bodies:
    body, _ = rest.encode(session.request(), raw_inputs=half(session))
    return {
        "an empty body": b"",
        "cut off JSON": body[: len(body) // 2],
        "a list": b"[]",
        "a number": b"3",
        "an object without inputs": b"{}",
        "inputs that are an object": b'{"inputs": {}}',
        "inputs that are numbers": b'{"inputs": [3]}',
        "bytes that are no text": b"\xff\xfe\x00",
    }


def half(session: Session) -> bool:
    """Whether an input is FP16, which goes as raw bytes alone."""
    return any(spec.datatype == "FP16" for spec in session.metadata.inputs)


@_broken("json.incomplete-input", Level.MUST, "Inference", "an input without name, shape, datatype or data is refused")
def incomplete_input(session: Session) -> Bodies:
    session.need_json()
    bodies = {}
    for member in ("name", "shape", "datatype", "data"):
        document = rest.inference_document(session.request())
        del document["inputs"][0][member]
        bodies[f"an input without {member}"] = json.dumps(document).encode()
    return bodies


@_broken("json.ragged", Level.MUST, "Tensor Data", "nested data that isn't a rectangle is refused")
def ragged(session: Session) -> Bodies:
    session.need_json()
    document = rest.inference_document(session.request())
    first = document["inputs"][0]
    first["data"] = [[*first["data"], first["data"][0]], []]
    return {"ragged data": json.dumps(document).encode()}


@_broken("json.nan", Level.SHOULD, "RFC 8259", "NaN and Infinity are not JSON")
def nan(session: Session) -> Bodies:
    return {str(value): _with_first_value(session, FLOATS[1:], value) for value in (math.nan, math.inf)}


@_broken(
    "json.range", Level.SHOULD, "Tensor Data Types", "an integer out of its datatype's range is refused, not wrapped"
)
def integer_range(session: Session) -> Bodies:
    return {str(value): _with_first_value(session, INTEGERS, value) for value in (2**70, -(2**70))}


@_broken("json.fraction", Level.SHOULD, "Tensor Data Types", "a fraction for an integer is refused, not rounded")
def fraction(session: Session) -> Bodies:
    return {"0.5 for an integer": _with_first_value(session, INTEGERS, 0.5)}


@rule("json.blame", Level.SHOULD, "Inference", "a broken body is refused with a status that blames it (4xx)")
def blame(session: Session) -> None:
    _ = session.baseline
    for make in BROKEN:
        with contextlib.suppress(Skipped):
            for what, body in make(session).items():
                seen = answer(session, body)
                if isinstance(seen, Refused):
                    require(seen.blames_client, f"{what} made the server fail", seen.status)


@rule(
    "json.kind",
    Level.SHOULD,
    "Tensor Data",
    "an element of another kind (text, null, an object for a number) is refused, or coerced, but no failure",
)
def kind(session: Session) -> None:
    for value in ("a", None, {"a": 1}):
        seen = answer(session, _with_first_value(session, (*FLOATS[1:], *INTEGERS), value))
        if isinstance(seen, Refused):
            require(seen.blames_client, f"{value!r} for a number made the server fail", seen.status)


def _with_first_value(session: Session, datatypes: tuple[str, ...], value: Any) -> bytes:
    """A body in which the first element of the first input of such a datatype is `value`."""
    session.need_json()
    document = rest.inference_document(session.request())
    for head in document["inputs"]:
        if head["datatype"] in datatypes:
            head["data"][0] = value
            return json.dumps(document).encode()
    raise Skipped(f"no input is {' or '.join(datatypes)}")


def infer(session: Session, document: dict[str, Any]) -> Response:
    """The answer to a JSON object."""
    _ = session.baseline
    return rest.decode(session.rest.post_infer(session.request(), json.dumps(document).encode()))


def refused(session: Session, body: bytes, what: str, headers: dict[str, str] | None = None) -> None:
    """Check that a body is refused."""
    if not isinstance(answer(session, body, headers), Refused):
        raise Failed(f"{what} was answered as if nothing were wrong")


def answer(session: Session, body: bytes, headers: dict[str, str] | None = None) -> Response | Refused:
    """What the server says to a body."""
    _ = session.baseline
    try:
        return rest.decode(session.rest.post_infer(session.request(), body, headers=headers))
    except Refused as error:
        return error


def same(one: Response, other: Response, what: str) -> None:
    """Check that two answers agree; `what` is what made the difference."""
    pairs = zip(one.outputs, other.outputs, strict=False)
    equal = len(one.outputs) == len(other.outputs) and all(alike(a.values, b.values) for a, b in pairs)
    require(equal, f"{what} the answer", [tensor.values for tensor in other.outputs])
