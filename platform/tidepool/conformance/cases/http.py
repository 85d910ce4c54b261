"""JSON and HTTP: rules that REST alone has."""

from __future__ import annotations

import gzip
import http.client
import json
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from tidepool.conformance import rest, tensors
from tidepool.conformance.case import Failed, Level, Skipped, Table, Transport, require
from tidepool.conformance.cases.health import UNKNOWN
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
    _same(session.infer(request), _infer(session, document), "nesting changes")


@rule("json.content-type", Level.SHOULD, "Inference", "JSON answers say that they are application/json")
def content_type(session: Session) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())
    answer, error = session.rest.post_infer(session.request(), body), session.rest.post_infer(session.request(), b"{")
    for response, what in ((answer, "an answer"), (error, "an error")):
        kind = response.headers.get("content-type", "none")
        require(kind.startswith("application/json"), f"{what} has content type", kind)


@rule("json.untyped", Level.SHOULD, "HTTP", "a body without a content type is taken as JSON")
def untyped(session: Session) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())
    path = f"{rest.model_path(session.model)}/infer"
    _same(session.baseline, rest.decode(session.rest.send("POST", path, content=body)), "no content type changes")


@rule("json.null-optional", Level.SHOULD, "Inference", "an optional member that is null counts as absent")
def null_optional(session: Session) -> None:
    session.need_json()
    document = rest.inference_document(session.request()) | {"id": None, "outputs": None}
    _same(session.baseline, _infer(session, document), "a null member changes")


@rule("json.unknown-member", Level.SHOULD, "Inference", "a member that the protocol doesn't know does no harm")
def unknown_member(session: Session) -> None:
    session.need_json()
    document = rest.inference_document(session.request()) | {"model_name": session.model, "x-unknown": {"a": [1]}}
    _same(session.baseline, _infer(session, document), "an unknown member changes")


@rule("json.broken", Level.MUST, "Inference", "a body that isn't a JSON object with inputs is refused")
def broken(session: Session) -> None:
    body, _ = rest.encode(session.request(), raw_inputs=_half(session))
    bodies = {
        "an empty body": b"",
        "cut off JSON": body[: len(body) // 2],
        "a list": b"[]",
        "a number": b"3",
        "an object without inputs": b"{}",
        "inputs that are an object": b'{"inputs": {}}',
        "inputs that are numbers": b'{"inputs": [3]}',
        "bytes that are no text": b"\xff\xfe\x00",
    }
    for what, content in bodies.items():
        _refused(session, content, what)


def _half(session: Session) -> bool:
    return any(spec.datatype == "FP16" for spec in session.metadata.inputs)


@rule("json.incomplete-input", Level.MUST, "Inference", "an input without name, shape, datatype or data is refused")
def incomplete_input(session: Session) -> None:
    session.need_json()
    for member in ("name", "shape", "datatype", "data"):
        document = rest.inference_document(session.request())
        del document["inputs"][0][member]
        _refused(session, json.dumps(document).encode(), f"an input without {member}")


@rule("json.ragged", Level.MUST, "Tensor Data", "nested data that isn't a rectangle is refused")
def ragged(session: Session) -> None:
    session.need_json()
    document = rest.inference_document(session.request())
    first = document["inputs"][0]
    first["data"] = [[*first["data"], first["data"][0]], []]
    _refused(session, json.dumps(document).encode(), "ragged data")


@rule("json.nan", Level.SHOULD, "RFC 8259", "NaN and Infinity are not JSON")
def nan(session: Session) -> None:
    for value in (math.nan, math.inf):
        document = _with_first_value(session, FLOATS[1:], value)
        _refused(session, json.dumps(document).encode(), str(value))


@rule("json.range", Level.SHOULD, "Tensor Data Types", "an integer out of its datatype's range is refused, not wrapped")
def integer_range(session: Session) -> None:
    for value in (2**70, -(2**70)):
        _refused(session, json.dumps(_with_first_value(session, INTEGERS, value)).encode(), str(value))


@rule("json.fraction", Level.SHOULD, "Tensor Data Types", "a fraction for an integer is refused, not rounded")
def fraction(session: Session) -> None:
    _refused(session, json.dumps(_with_first_value(session, INTEGERS, 0.5)).encode(), "0.5 for an integer")


@rule(
    "json.kind",
    Level.SHOULD,
    "Tensor Data",
    "an element of another kind (text, null, an object for a number) is refused, or coerced, but no failure",
)
def kind(session: Session) -> None:
    for value in ("a", None, {"a": 1}):
        document = _with_first_value(session, (*FLOATS[1:], *INTEGERS), value)
        try:
            _infer(session, document)
        except Refused as refused:
            require(refused.blames_client, f"{value!r} for a number made the server fail", refused.status)


def _with_first_value(session: Session, datatypes: tuple[str, ...], value: Any) -> dict[str, Any]:
    """A request in which the first element of the first input of such a datatype is `value`."""
    session.need_json()
    document = rest.inference_document(session.request())
    for head in document["inputs"]:
        if head["datatype"] in datatypes:
            head["data"][0] = value
            return document
    raise Skipped(f"no input is {' or '.join(datatypes)}")


@rule("http.error-shape", Level.MUST, "Errors", 'every error is {"error": "<text>"} with a status of 400 or more')
def error_shape(session: Session) -> None:
    gets = (rest.model_path(UNKNOWN), rest.model_path(session.model, UNKNOWN))
    posts = (f"{rest.model_path(UNKNOWN)}/infer", f"{rest.model_path(session.model)}/infer")
    answers = {path: session.rest.send("GET", path) for path in gets}
    answers |= {f"POST {path}": session.rest.send("POST", path, content=b"{") for path in posts}
    for path, response in answers.items():
        try:
            rest.accepted(response)
        except Refused as refused:
            require(refused.well_formed, f"the error of {path} is out of form", f"{refused.status} {refused.message}")
        else:
            raise Failed(f"{path} is answered with 200")


@rule("http.method", Level.SHOULD, "RFC 9110, 405", "a method that a path doesn't have gets 405 and an Allow header")
def method(session: Session) -> None:
    path = rest.model_path(session.model)
    for verb, target in (("GET", f"{path}/infer"), ("DELETE", path), ("POST", f"{path}/ready")):
        response = session.rest.send(verb, target)
        require(response.status_code == 405, f"{verb} {target} is answered with", str(response.status_code))
        require("allow" in response.headers, f"the 405 of {verb} {target} has no Allow header")


@rule("http.unknown-path", Level.SHOULD, "RFC 9110, 404", "a path that doesn't exist is 404")
def unknown_path(session: Session) -> None:
    for path in (f"/v2/{UNKNOWN}", f"{rest.model_path(session.model)}/{UNKNOWN}"):
        status = session.rest.send("GET", path).status_code
        require(status == 404, f"{path} is answered with", str(status))


@rule("http.chunked", Level.SHOULD, "RFC 9112, 7.1", "a body may come in chunks, without a length")
def chunked(session: Session) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())

    def pieces() -> Iterator[bytes]:
        yield body[:10]
        yield body[10:]

    path = f"{rest.model_path(session.model)}/infer"
    response = session.rest.send("POST", path, content=pieces(), headers={"Content-Type": "application/json"})
    _same(session.baseline, rest.decode(response), "chunks change")


@rule("http.keep-alive", Level.SHOULD, "RFC 9112, 9.3", "a connection is still good after a refusal")
def keep_alive(session: Session) -> None:
    url = urlsplit(session.rest.url)
    kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
    connection = kind(url.netloc, timeout=session.rest.timeout_s)
    path = f"{url.path.rstrip('/')}{rest.model_path(session.model)}"
    try:
        sockets = []
        for verb, target, body in (("POST", f"{path}/infer", b"{"), ("GET", f"{path}/ready", None)):
            connection.request(verb, target, body, session.rest.headers | {"Content-Type": "application/json"})
            sockets.append(connection.sock)
            response = connection.getresponse()
            response.read()
        require(response.status == 200, "after a refusal comes status", str(response.status))
        require(sockets[0] is sockets[1], "the server closed the connection")
    except (http.client.HTTPException, OSError) as error:
        raise Failed(f"the connection broke after a refusal: {type(error).__name__} {error}") from None
    finally:
        connection.close()


@rule("http.gzip", Level.EXTENSION, "RFC 9110, 8.4", "a body may be compressed with gzip (clients of Triton do)")
def gzipped(session: Session) -> None:
    _compressed(session, "gzip", gzip.compress)


@rule("http.deflate", Level.EXTENSION, "RFC 9110, 8.4", "a body may be compressed with deflate (clients of Triton do)")
def deflated(session: Session) -> None:
    _compressed(session, "deflate", zlib.compress)


@rule("http.broken-gzip", Level.EXTENSION, "RFC 9110, 8.4", "a body that isn't in its announced encoding is refused")
def broken_gzip(session: Session) -> None:
    body, _ = rest.encode(session.request(), raw_inputs=_half(session))
    for what, content in {"no gzip": body, "cut off gzip": gzip.compress(body)[:-12]}.items():
        _refused(session, content, what, {"Content-Encoding": "gzip"})


def _compressed(session: Session, encoding: str, compress: Callable[[bytes], bytes]) -> None:
    session.need_json()
    body, _ = rest.encode(session.request())
    headers = {"Content-Encoding": encoding}
    response = session.rest.post_infer(session.request(), compress(body), headers=headers)
    if response.status_code == 415:
        raise Skipped(f"the server says that it doesn't take {encoding}")
    _same(session.baseline, rest.decode(response), f"{encoding} changes")


@rule(
    "repository.index",
    Level.EXTENSION,
    "Triton: Model Repository",
    "the index lists the model, and whether it is ready",
)
def index(session: Session) -> None:
    session.need_extension("model_repository")
    response = session.rest.send("POST", "/v2/repository/index", json={})
    models = rest.accepted(response).json()
    require(isinstance(models, list), "the index is not a list", models)
    states = {model.get("name"): model.get("state") for model in models}
    require(states.get(session.model) == "READY", f"{session.model} is not listed as READY", states)


def _infer(session: Session, document: dict[str, Any]) -> Response:
    _ = session.baseline
    return rest.decode(session.rest.post_infer(session.request(), json.dumps(document).encode()))


def _refused(session: Session, body: bytes, what: str, headers: dict[str, str] | None = None) -> None:
    """Check that a body is refused, by a status that blames it."""
    _ = session.baseline
    try:
        rest.decode(session.rest.post_infer(session.request(), body, headers=headers))
    except Refused as refused:
        require(refused.blames_client, f"{what} made the server fail", f"{refused.status} {refused.message}")
        return
    raise Failed(f"{what} was answered as if nothing were wrong")


def _same(one: Response, other: Response, what: str) -> None:
    pairs = zip(one.outputs, other.outputs, strict=False)
    same = len(one.outputs) == len(other.outputs) and all(alike(a.values, b.values) for a, b in pairs)
    require(same, f"{what} the answer", [tensor.values for tensor in other.outputs])
