"""Rules that gRPC alone has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from tidepool.conformance import rpc
from tidepool.conformance.case import Failed, Level, Skipped, Table, Transport, require
from tidepool.conformance.cases.health import UNKNOWN
from tidepool.conformance.messages import Refused
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import alike
from tidepool.serve._pb2 import open_inference_pb2 as pb

SECTION = "gRPC: Inference"

rule = Table((Transport.GRPC,))


@rule("grpc.raw", Level.MUST, SECTION, "inputs as raw bytes mean the same as typed contents")
def raw(session: Session) -> None:
    typed, other = session.baseline, session.infer(session.request(), raw=True)
    for one, two in zip(typed.outputs, other.outputs, strict=True):
        require(alike(one.values, two.values), f"raw inputs change output {one.name}", (one.values, two.values))


@rule("grpc.as-rest", Level.SHOULD, "gRPC", "gRPC gives the same answers as REST")
def as_rest(session: Session) -> None:
    if session.other is None:
        raise Skipped("only gRPC is checked")
    for one, two in zip(session.other.baseline.outputs, session.baseline.outputs, strict=False):
        same = one.name == two.name and alike(one.values, two.values)
        require(same, f"output {one.name} is different over gRPC", (one.values, two.values))


@rule("grpc.one-form", Level.MUST, SECTION, "an answer has raw bytes for all outputs or contents for all, never both")
def one_form(session: Session) -> None:
    _ = session.baseline
    half = any(spec.datatype == "FP16" for spec in session.metadata.inputs)
    for as_raw in (True,) if half else (True, False):
        message = session.grpc.send_infer(rpc.encode(session.request(), raw=as_raw))
        typed = [output.name for output in message.outputs if output.contents.ByteSize()]
        if message.raw_output_contents:
            require(not typed, "beside raw_output_contents there are contents of", typed)
            require(len(message.raw_output_contents) == len(message.outputs), "raw bytes are not there for all outputs")


@rule("grpc.both-forms", Level.MUST, SECTION, "a request with raw bytes and contents is refused")
def both_forms(session: Session) -> None:
    def add_contents(message: Any) -> None:
        field = rpc.FIELDS.get(message.inputs[0].datatype, "fp32_contents")
        getattr(message.inputs[0].contents, field).extend(session.request().inputs[0].values)

    _refused(session, add_contents, "raw bytes beside contents")


@rule("grpc.raw-count", Level.MUST, SECTION, "raw bytes for more or fewer inputs than there are, are refused")
def raw_count(session: Session) -> None:
    _refused(session, lambda message: message.raw_input_contents.append(b""), "raw bytes for an input too many")
    if len(session.request().inputs) > 1:
        _refused(session, lambda message: message.raw_input_contents.pop(), "raw bytes for an input too few")


@rule("grpc.raw-size", Level.MUST, SECTION, "raw bytes that are too many or too few for the shape are refused")
def raw_size(session: Session) -> None:
    def longer(message: Any) -> None:
        message.raw_input_contents[0] += b"\0"

    def shorter(message: Any) -> None:
        message.raw_input_contents[0] = message.raw_input_contents[0][:-1]

    _refused(session, longer, "a byte too many")
    _refused(session, shorter, "a byte too few")


@rule("grpc.field", Level.SHOULD, "gRPC: Tensor Data", "elements in the field of another datatype are refused")
def field(session: Session) -> None:
    def move(message: Any) -> None:
        del message.raw_input_contents[:]
        for tensor, head in zip(session.request().inputs, message.inputs, strict=True):
            wrong = "int64_contents" if tensor.datatype != "INT64" else "uint64_contents"
            getattr(head.contents, wrong).extend([0] * len(tensor.values))

    _refused(session, move, "elements in a wrong field")


@rule("grpc.parameters", Level.SHOULD, "gRPC: Parameters", "parameters of every kind are taken")
def parameters(session: Session) -> None:
    _ = session.baseline
    message = rpc.encode(session.request(), raw=True)
    kinds: dict[str, Any] = {"bool": True, "int64": -1, "string": "a", "double": 0.5, "uint64": 2**63}
    for kind, value in kinds.items():
        setattr(message.parameters[f"x-{kind}"], f"{kind}_param", value)
    session.grpc.send_infer(message)


@rule("grpc.not-found", Level.SHOULD, SECTION, "a model that isn't there is NOT_FOUND")
def not_found(session: Session) -> None:
    try:
        session.grpc.send_infer(pb.ModelInferRequest(model_name=UNKNOWN))
    except Refused as refused:
        require(refused.status == "NOT_FOUND", "a model that isn't there gets", refused.status)
        return
    raise Failed("a model that isn't there was answered")


@rule("grpc.garbage", Level.SHOULD, SECTION, "bytes that are no message are refused, and the connection stays good")
def garbage(session: Session) -> None:
    try:
        session.grpc.send(f"/{rpc.SERVICE}/ModelInfer", b"\xff\xff\xff", pb.ModelInferResponse.FromString)
    except Refused:
        session.infer(session.request())
        return
    raise Failed("bytes that are no message were answered as if nothing were wrong")


@rule("grpc.unknown-call", Level.SHOULD, "gRPC status codes", "a call that the service doesn't have is UNIMPLEMENTED")
def unknown_call(session: Session) -> None:
    try:
        session.grpc.send(f"/{rpc.SERVICE}/NoSuchCall", b"", None)
    except Refused as refused:
        require(refused.status == "UNIMPLEMENTED", "a call that doesn't exist gets", refused.status)
        return
    raise Failed("a call that doesn't exist was answered")


@rule("grpc.deadline", Level.SHOULD, "gRPC deadlines", "calls past their deadline end, and later ones are answered")
def deadline(session: Session) -> None:
    _ = session.baseline
    message = rpc.encode(session.request(), raw=True)
    for _ in range(10):
        try:
            session.grpc.send_infer(message, timeout=0.0005)
        except Refused as refused:
            require(refused.status == "DEADLINE_EXCEEDED", "a call past its deadline gets", refused.status)
    session.infer(session.request())


@rule("grpc.gzip", Level.EXTENSION, "gRPC compression", "a message may be compressed with gzip")
def compressed(session: Session) -> None:
    _ = session.baseline
    try:
        session.grpc.send_infer(rpc.encode(session.request(), raw=True), compression=grpc.Compression.Gzip)
    except Refused as refused:
        if refused.status == "UNIMPLEMENTED":
            raise Skipped("the server says that it doesn't take gzip") from None
        raise


@rule("grpc.health", Level.EXTENSION, "grpc.health.v1", "the health service says SERVING")
def health(session: Session) -> None:
    answer = _offered(session, "/grpc.health.v1.Health/Check", b"")
    require(answer == b"\x08\x01", "the health service doesn't say SERVING", answer)


@rule("grpc.reflection", Level.EXTENSION, "grpc.reflection.v1alpha", "reflection lists the protocol's service")
def reflection(session: Session) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    list_services = b"\x3a\x00"  # ServerReflectionRequest{list_services=7: ""}
    call = session.grpc.channel.stream_stream(path)(iter([list_services]), timeout=10, metadata=session.grpc.metadata)
    try:
        answer = next(iter(call), b"")
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNIMPLEMENTED:
            raise Skipped("the server has no reflection") from None
        raise Failed(f"reflection fails with {error.code().name}") from None
    require(rpc.SERVICE.encode() in answer, f"reflection doesn't list {rpc.SERVICE}", answer)


def _offered(session: Session, path: str, content: bytes) -> bytes:
    try:
        answer: bytes = session.grpc.send(path, content, None)
    except Refused as refused:
        if refused.status == "UNIMPLEMENTED":
            raise Skipped("the server doesn't offer it") from None
        raise
    return answer


def _refused(session: Session, spoil: Callable[[Any], Any], what: str) -> None:
    """Check that a raw request is refused once `spoil` has changed its message."""
    _ = session.baseline
    message = rpc.encode(session.request(), raw=True)
    spoil(message)
    try:
        session.grpc.send_infer(message)
    except Refused:
        return
    raise Failed(f"{what} was answered as if nothing were wrong")
