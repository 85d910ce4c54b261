"""Protobuf messages of the Open Inference Protocol to requests and back: what `codecs` is for HTTP.

A message carries its tensors either all as raw bytes or all as typed contents, never both. An answer has the form of
its request; FP16 has only the raw form, so an answer with an FP16 tensor is raw as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf.json_format import ParseDict

from tidepool.errors import InvalidRequest
from tidepool.recipe import DATATYPES
from tidepool.serve import codecs
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.serve.protocol import InferRequest, InferResponse, Parameters, RequestedOutput, Tensors

_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""The field of `InferTensorContents` that holds the elements of each datatype; FP16 has none."""
_WIDE = {"int_contents": np.dtype(np.int32), "uint_contents": np.dtype(np.uint32)}
"""The dtype of the fields that narrower datatypes share."""
RAW_CONTENTS = b"\x32"
"""What stands before each of an answer's raw contents: field 6, of a length that follows.

Source: https://protobuf.dev/programming-guides/encoding
"""
_MAX_AXES, _MAX_ELEMENTS = 32, 2**40
"""Beyond what fits a message; numpy refuses larger shapes even of tensors without elements."""


def decode(message: pb.ModelInferRequest) -> InferRequest:
    """The request in a message. Raw numeric tensors are read-only views of its bytes.

    Raises:
        InvalidRequest: raw bytes beside typed contents, or a tensor whose data doesn't fit its datatype and shape.
    """
    raw = message.raw_input_contents
    inputs: Tensors = {}
    try:
        if raw and len(raw) != len(message.inputs):
            what = "raw_input_contents doesn't fit the inputs"
            raise InvalidRequest(what, seen=len(raw), allowed=len(message.inputs))
        for at, tensor in enumerate(message.inputs):
            if tensor.name in inputs:
                raise InvalidRequest("an input is given twice", seen=tensor.name)
            inputs[tensor.name] = _from_raw(tensor, raw[at]) if raw else _from_contents(tensor)
    except InvalidRequest as error:
        error.told = [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in message.inputs]
        raise
    return InferRequest(
        inputs=inputs,
        id=message.id or None,
        parameters=decode_parameters(message.parameters),
        outputs=[RequestedOutput(output.name) for output in message.outputs] or None,
        binary_output=bool(raw),
    )


def encode(response: InferResponse) -> pb.ModelInferResponse:
    """The message of an answer: raw if its tensors travel as raw bytes or one of them is FP16, else typed."""
    if not _is_raw(response):
        return _typed(response)
    message: pb.ModelInferResponse = pb.ModelInferResponse.FromString(_raw(response))
    return message


def serialize(response: InferResponse) -> bytes:
    """The same as bytes."""
    return _raw(response) if _is_raw(response) else bytes(_typed(response).SerializeToString())


def _is_raw(response: InferResponse) -> bool:
    return bool(response.binary) or any(values.dtype == np.float16 for values in response.outputs.values())


def _typed(response: InferResponse) -> pb.ModelInferResponse:
    message: pb.ModelInferResponse = pb.ModelInferResponse.FromString(_opening(*_said(response)))
    message.id = response.id or ""
    for tensor, values in zip(message.outputs, response.outputs.values(), strict=True):
        getattr(tensor.contents, _FIELDS[tensor.datatype]).extend(values.reshape(-1).tolist())
    return message


def _raw(response: InferResponse) -> bytes:
    # Fields may come in any order, and messages in a row are one with the fields of all.
    parts = [_opening(*_said(response))]
    if response.id:
        parts.append(pb.ModelInferResponse(id=response.id).SerializeToString())
    for values in response.outputs.values():
        contents = codecs.to_raw(values)
        parts += RAW_CONTENTS, _varint(len(contents)), contents
    return b"".join(parts)


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    found.append(number)
    return bytes(found)


def _said(response: InferResponse) -> tuple[Any, ...]:
    datatypes = {spec.name: spec.datatype for spec in response.signature.outputs}
    tensors = tuple((name, datatypes[name], values.shape) for name, values in response.outputs.items())
    # Types belong to it: True and 1 are one and the same key of a table.
    parameters = tuple((name, value, type(value)) for name, value in response.parameters.items())
    return response.model, response.version, parameters, tensors


@lru_cache(maxsize=256)
def _opening(
    model: str, version: str, parameters: tuple[tuple[str, Any, type], ...], tensors: tuple[tuple[str, str, Any], ...]
) -> bytes:
    """All of an answer's message but its id and its data: it is the same again and again."""
    outputs = [
        pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=shape)
        for name, datatype, shape in tensors
    ]
    said = encode_parameters({name: value for name, value, _ in parameters})
    message = pb.ModelInferResponse(model_name=model, model_version=version, parameters=said, outputs=outputs)
    return bytes(message.SerializeToString())


def encode_request(
    inputs: Tensors, datatypes: Mapping[str, str], *, model: str, raw: bool = False
) -> pb.ModelInferRequest:
    """The message that a client would send for `inputs`."""
    message = pb.ModelInferRequest(model_name=model)
    for name, values in inputs.items():
        tensor = message.inputs.add(name=name, datatype=datatypes[name], shape=values.shape)
        if raw:
            message.raw_input_contents.append(codecs.to_raw(values))
        else:
            getattr(tensor.contents, _FIELDS[datatypes[name]]).extend(values.reshape(-1).tolist())
    return message


def model_metadata(document: Mapping[str, Any]) -> pb.ModelMetadataResponse:
    """The message of `Dataplane.metadata`'s document; its parameters become properties."""
    return pb.ModelMetadataResponse(
        name=document["name"],
        versions=document["versions"],
        platform=document["platform"],
        inputs=[pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in document["inputs"]],
        outputs=[pb.ModelMetadataResponse.TensorMetadata(**tensor) for tensor in document["outputs"]],
        properties={key: str(value) for key, value in document["parameters"].items()},
    )


def model_config(document: Mapping[str, Any]) -> pb.ModelConfigResponse:
    """The message of `triton.config`'s document."""
    message = pb.ModelConfigResponse()
    ParseDict({"config": document}, message)
    return message


def model_statistics(document: Mapping[str, Any]) -> pb.ModelStatisticsResponse:
    """The message of `Dataplane.statistics`' document, as far as it has fields for it."""
    message = pb.ModelStatisticsResponse()
    ParseDict(document, message, ignore_unknown_fields=True)
    return message


def repository_index(entries: Sequence[Mapping[str, str]]) -> pb.RepositoryIndexResponse:
    """The message of an index."""
    message = pb.RepositoryIndexResponse()
    ParseDict({"models": entries}, message)
    return message


def decode_parameters(parameters: Mapping[str, pb.InferParameter]) -> Parameters:
    """Parameters as plain values; one without a value is left out.

    Raises:
        InvalidRequest: one is not a number, or infinite.
    """
    if not parameters:
        return {}
    chosen = ((name, value, value.WhichOneof("parameter_choice")) for name, value in parameters.items())
    plain = {name: getattr(value, choice) for name, value, choice in chosen if choice is not None}
    for name, value in plain.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidRequest(f"parameter {name} is not a number that JSON has", seen=value, allowed="a finite one")
    return plain


def encode_parameters(parameters: Parameters) -> dict[str, pb.InferParameter]:
    """The inverse of `decode_parameters`, for values that are bool, int, float or str."""
    return {name: _parameter(value) for name, value in parameters.items()}


def _parameter(value: bool | int | float | str) -> pb.InferParameter:
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(uint64_param=value) if value >= 2**63 else pb.InferParameter(int64_param=value)
    if isinstance(value, float):
        return pb.InferParameter(double_param=value)
    return pb.InferParameter(string_param=value)


def _from_raw(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes) -> npt.NDArray[Any]:
    if tensor.HasField("contents") and tensor.contents.ByteSize():
        raise InvalidRequest(
            f"input {tensor.name} has contents although the request has raw_input_contents",
            remedy="send one or the other",
        )
    shape = _shape(tensor)
    return codecs.from_raw(tensor.name, tensor.datatype, shape, data)


def _from_contents(tensor: pb.ModelInferRequest.InferInputTensor) -> npt.NDArray[Any]:
    shape = _shape(tensor)
    name, datatype, count = tensor.name, tensor.datatype, math.prod(shape)
    if datatype == "FP16":
        raise InvalidRequest(f"input {name}: FP16 has no typed contents", remedy="send it in raw_input_contents")
    wanted = _FIELDS[datatype]
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if any(field != wanted for field in filled):
        raise InvalidRequest(
            f"the data of input {name} is in a wrong field", seen=", ".join(filled), allowed=f"{wanted} for {datatype}"
        )
    elements = getattr(tensor.contents, wanted)
    if len(elements) != count:
        raise InvalidRequest(
            f"input {name}: data and shape don't fit", seen=f"{len(elements)} values", allowed=f"{count} values"
        )
    if datatype == "BYTES":
        values = np.empty(count, dtype=np.object_)
        values[:] = elements
        return values.reshape(shape)
    wide = np.array(elements, _WIDE.get(wanted, DATATYPES[datatype]))
    values = wide.astype(DATATYPES[datatype], copy=False)
    if values is not wide and not np.array_equal(values, wide):
        raise InvalidRequest(f"input {name} holds values out of the range of {datatype}", seen=wide[values != wide][0])
    return values.reshape(shape)


def _shape(tensor: pb.ModelInferRequest.InferInputTensor) -> tuple[int, ...]:
    """A tensor's shape, once its datatype is known to exist."""
    if tensor.datatype not in DATATYPES:
        raise InvalidRequest(
            f"input {tensor.name} has an unknown datatype", seen=tensor.datatype, allowed=", ".join(DATATYPES)
        )
    shape = tuple(tensor.shape)
    if len(shape) > _MAX_AXES or min(shape, default=0) < 0 or math.prod(filter(None, shape)) > _MAX_ELEMENTS:
        raise InvalidRequest(
            f"input {tensor.name} has no proper shape",
            seen=list(shape[: _MAX_AXES + 1]),
            allowed=f"at most {_MAX_AXES} lengths of 0 or more",
        )
    return shape
