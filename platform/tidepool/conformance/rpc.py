"""A server over gRPC."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import grpc

from tidepool.conformance import tensors
from tidepool.conformance.case import Failed, Transport
from tidepool.conformance.messages import Model, Refused, Request, Response, Server
from tidepool.conformance.tensors import Spec, Tensor
from tidepool.serve._pb2 import open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where `InferTensorContents` has the elements of each datatype."""
BLAMES_CLIENT = ("INVALID_ARGUMENT", "NOT_FOUND", "OUT_OF_RANGE", "FAILED_PRECONDITION", "UNIMPLEMENTED")
"""Status codes that say that the request is at fault."""


class GrpcTarget:
    """The protocol's calls at `address`, which is host:port, with `grpcs://` before it for TLS."""

    transport = Transport.GRPC

    def __init__(self, address: str, headers: Mapping[str, str], timeout_s: float) -> None:
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if address.startswith("grpcs://"):
            host = address.removeprefix("grpcs://")
            self.channel = grpc.secure_channel(host, grpc.ssl_channel_credentials(), limits)
        else:
            self.channel = grpc.insecure_channel(address, limits)
        self.metadata = tuple((name.lower(), value) for name, value in headers.items())
        self._timeout_s = timeout_s

    def live(self) -> bool:
        """Whether the server says that it is live."""
        return bool(self.call("ServerLive", pb.ServerLiveRequest(), pb.ServerLiveResponse).live)

    def ready(self) -> bool:
        """Whether the server says that it is ready."""
        return bool(self.call("ServerReady", pb.ServerReadyRequest(), pb.ServerReadyResponse).ready)

    def server(self) -> Server:
        """The server's metadata."""
        answer = self.call("ServerMetadata", pb.ServerMetadataRequest(), pb.ServerMetadataResponse)
        return Server(answer.name, answer.version, tuple(answer.extensions))

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether the server says that a model is ready."""
        request = pb.ModelReadyRequest(name=model, version=version)
        return bool(self.call("ModelReady", request, pb.ModelReadyResponse).ready)

    def model(self, model: str, version: str = "") -> Model:
        """A model's metadata."""
        request = pb.ModelMetadataRequest(name=model, version=version)
        answer = self.call("ModelMetadata", request, pb.ModelMetadataResponse)
        return Model(
            answer.name, tuple(answer.versions), answer.platform, _specs(answer.inputs), _specs(answer.outputs)
        )

    def infer(self, request: Request, raw: bool = False) -> Response:
        """A model's answer; FP16 goes as raw bytes whatever `raw` says."""
        half = any(tensor.datatype == "FP16" for tensor in request.inputs)
        return decode(self.send_infer(encode(request, raw=raw or half)))

    def send_infer(self, message: Any, **options: Any) -> Any:
        """The message that answers an inference request."""
        return self.call("ModelInfer", message, pb.ModelInferResponse, **options)

    def call(self, name: str, message: Any, answer: Any, **options: Any) -> Any:
        """The answer of one of the protocol's calls."""
        return self.send(f"/{SERVICE}/{name}", message.SerializeToString(), answer.FromString, **options)

    def send(self, path: str, content: bytes, read: Any, **options: Any) -> Any:
        """The answer to bytes, read by `read`.

        Raises:
            Refused: it is an error.
            Failed: there is none.
        """
        call = self.channel.unary_unary(path, response_deserializer=read)
        try:
            return call(content, **{"timeout": self._timeout_s, "metadata": self.metadata, **options})
        except grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            if code == "UNAVAILABLE" and "connect" in details:
                raise Failed(f"no answer to {path}: {details[:200]}") from None
            raise Refused(code, details, blames_client=code in BLAMES_CLIENT, well_formed=bool(details)) from None


def encode(request: Request, raw: bool = False) -> Any:
    """The message of a request."""
    message = pb.ModelInferRequest(
        model_name=request.model,
        model_version=request.version,
        id=request.id,
        parameters={name: parameter(value) for name, value in request.parameters.items()},
        outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=name) for name in request.outputs],
    )
    for tensor in request.inputs:
        head = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            message.raw_input_contents.append(tensors.to_raw(tensor))
        else:
            # A datatype that doesn't exist has no field; its elements go where floats go.
            getattr(head.contents, FIELDS.get(tensor.datatype, "fp32_contents")).extend(tensor.values)
    return message


def parameter(value: bool | int | float | str) -> Any:
    """A parameter's message."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    chosen: dict[str, Any] = {kinds[type(value)]: value}
    return pb.InferParameter(**chosen)


def decode(message: Any) -> Response:
    """An inference answer.

    Raises:
        Failed: it is out of form.
    """
    raw = message.raw_output_contents
    if raw and len(raw) != len(message.outputs):
        raise Failed(f"the answer has {len(message.outputs)} outputs and {len(raw)} raw_output_contents")
    read = [functools.partial(tensors.from_raw, data=data) for data in raw] if raw else [None] * len(message.outputs)
    outputs = []
    for output, from_raw in zip(message.outputs, read, strict=True):
        (spec,) = _specs([output])
        outputs.append(from_raw(spec) if from_raw else _from_contents(spec, output.contents))
    return Response(message.model_name, message.model_version, message.id, tuple(outputs))


def _from_contents(spec: Spec, contents: Any) -> Tensor:
    wanted = FIELDS.get(spec.datatype)
    if wanted is None:
        raise Failed(f"output {spec.name} is {spec.datatype}, which has no typed contents")
    return tensors.checked(Tensor(spec.name, spec.datatype, spec.shape, list(getattr(contents, wanted))))


def _specs(heads: Any) -> tuple[Spec, ...]:
    return tuple(Spec(head.name, head.datatype, tuple(head.shape)) for head in heads)
