"""Bytes to tensors and back: JSON, and the binary tensor data extension of the Open Inference Protocol.

Arrays come straight from the parsed body: raw tensors are views into it, JSON numbers make one array each. Any
bytes in give an `InferRequest` or an `InvalidRequest`, never another exception.
"""

from __future__ import annotations

import math
import struct
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import orjson

from tidepool.errors import InvalidRequest
from tidepool.recipe import DATATYPES
from tidepool.serve.body import Body
from tidepool.serve.jsondata import from_json
from tidepool.serve.protocol import (
    InferRequest,
    InferResponse,
    Parameters,
    RequestedOutput,
    Tensors,
    check_parameters,
)

MOST_AXES, MOST_VALUES = 32, 2**40
GZIP = b"\x1f\x8b"
"""How it begins: RFC 1952, section 2.3.1."""
_OPTIONS = orjson.OPT_SERIALIZE_NUMPY


def decode(body: Body, json_length: int | None = None) -> InferRequest:
    """Parse a request body; `json_length` is the value of `Inference-Header-Content-Length`, if sent.

    Raises:
        InvalidRequest: not JSON, not a request, or a tensor whose data doesn't fit its datatype and shape.
    """
    if json_length is not None and not 0 < json_length <= len(body):
        raise InvalidRequest(
            "Inference-Header-Content-Length doesn't fit the body", seen=json_length, allowed=f"1 to {len(body)}"
        )
    try:
        document = orjson.loads(body if json_length is None else memoryview(body)[:json_length])
    except orjson.JSONDecodeError as error:
        raise _not_json(error, json_length, body) from None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise InvalidRequest("the request has no list of inputs", allowed='{"inputs": [...]}')
    raw = _Raw(body, len(body) if json_length is None else json_length)
    inputs: Tensors = {}
    try:
        for tensor in document["inputs"]:
            name, values = _decode_tensor(tensor, raw)
            if name in inputs:
                raise InvalidRequest("an input is given twice", seen=name)
            inputs[name] = values
        raw.finish()
    except InvalidRequest as error:
        error.told = _told(document["inputs"])
        raise
    parameters = _mapping(document.get("parameters"), "parameters")
    check_parameters(parameters)
    return InferRequest(
        inputs=inputs,
        id=_text_or_none(document.get("id"), "id"),
        parameters=parameters,
        outputs=_decode_outputs(document.get("outputs")),
        binary_output=parameters.get("binary_data_output") is True,
    )


def encode(response: InferResponse) -> tuple[bytes, int | None]:
    """The body of an answer, and the length of its JSON part if raw tensors follow it."""
    specs = {spec.name: spec for spec in response.signature.outputs}
    outputs, raw = [], []
    for name, values in response.outputs.items():
        head: dict[str, Any] = {"name": name, "datatype": specs[name].datatype, "shape": values.shape}
        if name in response.binary:
            raw.append(to_raw(values))
            head["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            head["data"] = _to_json(name, values)
        outputs.append(head)
    document: dict[str, Any] = {"model_name": response.model, "model_version": response.version}
    if response.id is not None:
        document["id"] = response.id
    if response.parameters:
        document["parameters"] = response.parameters
    document["outputs"] = outputs
    body = orjson.dumps(document, option=_OPTIONS)
    return (b"".join([body, *raw]), len(body)) if raw else (body, None)


def encode_request(inputs: Tensors, datatypes: dict[str, str]) -> bytes:
    """A JSON request body for `inputs`, as a client would send it."""
    tensors = [
        {"name": name, "datatype": datatypes[name], "shape": values.shape, "data": _to_json(name, values)}
        for name, values in inputs.items()
    ]
    return orjson.dumps({"inputs": tensors}, option=_OPTIONS)


def to_raw(values: npt.NDArray[Any]) -> bytes:
    """Little-endian, row-major bytes; each BYTES element after its length in four bytes."""
    if values.dtype == np.object_:
        return b"".join(struct.pack("<I", len(item)) + item for item in values.reshape(-1))
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def from_raw(name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview) -> npt.NDArray[Any]:
    """The inverse of `to_raw`; numeric tensors are read-only views of `data`.

    Raises:
        InvalidRequest: the bytes are too few or too many for the shape.
    """
    count = math.prod(shape)
    if datatype == "BYTES":
        return _split_bytes(name, data, count).reshape(shape)
    dtype = DATATYPES[datatype].newbyteorder("<")
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"input {name} has a wrong number of bytes", seen=len(data), allowed=count * dtype.itemsize
        )
    return np.frombuffer(data, dtype).reshape(shape)


def _not_json(error: orjson.JSONDecodeError, json_length: int | None, body: Body) -> InvalidRequest:
    if body[:2] == GZIP:
        return InvalidRequest(
            "the body is packed", seen="gzip", remedy="send it with the header Content-Encoding: gzip"
        )
    if json_length is None:
        remedy = "send JSON; it has no NaN and no Infinity"
        return InvalidRequest("the body is not JSON", seen=str(error), remedy=remedy)
    return InvalidRequest(
        "the part of the body that Inference-Header-Content-Length says is JSON is not JSON",
        seen=f"Inference-Header-Content-Length {json_length}, of {len(body)} bytes: {error}",
        allowed="the length in bytes of the JSON before the raw tensors",
        remedy="count the bytes of the JSON as sent, not its characters",
    )


class _Raw:
    """The raw tensors that follow the JSON, taken one after another."""

    def __init__(self, body: Body, start: int) -> None:
        self._body, self._at = memoryview(body), start

    def take(self, name: str, size: object) -> memoryview:
        left = len(self._body) - self._at
        if not _is_int(size) or not 0 <= size <= left:
            raise InvalidRequest(f"binary_data_size of input {name} is wrong", seen=size, allowed=f"0 to {left}")
        self._at += size
        return self._body[self._at - size : self._at]

    def finish(self) -> None:
        if self._at != len(self._body):
            raise InvalidRequest(
                "bytes are left over after the last tensor", seen=len(self._body) - self._at, allowed=0
            )


def _decode_tensor(tensor: object, raw: _Raw) -> tuple[str, npt.NDArray[Any]]:
    if not isinstance(tensor, dict):
        raise InvalidRequest("an input is not an object", seen=tensor)
    name, datatype = tensor.get("name"), tensor.get("datatype")
    if not isinstance(name, str):
        raise InvalidRequest("an input has no name", seen=name)
    if not isinstance(datatype, str) or datatype not in DATATYPES:
        raise InvalidRequest(f"input {name} has an unknown datatype", seen=datatype, allowed=", ".join(DATATYPES))
    shape = _shape(name, tensor.get("shape"))
    size = _mapping(tensor.get("parameters"), "parameters").get("binary_data_size")
    if size is not None:
        return name, from_raw(name, datatype, shape, raw.take(name, size))
    if "data" not in tensor:
        raise InvalidRequest(f"input {name} has no data", allowed="data, or parameters.binary_data_size")
    return name, from_json(name, datatype, shape, tensor["data"])


def _told(tensors: list[object]) -> list[tuple[object, object, object]]:
    """What the client says that the tensors are, for an error that says more; nothing where that can't be told."""
    told = [(t.get("name"), t.get("datatype"), t.get("shape")) for t in tensors if isinstance(t, dict)]
    return told if len(told) == len(tensors) else []


def _split_bytes(name: str, data: bytes | memoryview, count: int) -> npt.NDArray[Any]:
    items: list[bytes] = []
    at = 0
    while at + 4 <= len(data) and len(items) < count:
        (length,) = struct.unpack_from("<I", data, at)
        items.append(bytes(data[at + 4 : at + 4 + length]))
        at += 4 + length
    if len(items) != count or at != len(data):
        raise InvalidRequest(f"input {name}: BYTES don't fit the shape", seen=f"{len(items)} elements", allowed=count)
    values = np.empty(count, dtype=np.object_)
    values[:] = items
    return values


def _to_json(name: str, values: npt.NDArray[Any]) -> Any:
    if values.dtype == np.object_:
        try:
            return [item.decode() for item in values.reshape(-1)]
        except UnicodeDecodeError:
            raise InvalidRequest(
                f"{name} is not UTF-8 and has no JSON form", remedy="ask for it with binary_data: true"
            ) from None
    if values.dtype == np.float16:
        raise InvalidRequest(f"{name} is FP16 and has no JSON form", remedy="ask for it with binary_data: true")
    return np.ascontiguousarray(values).reshape(-1)


def _decode_outputs(document: object) -> list[RequestedOutput] | None:
    if document is None:
        return None
    if not isinstance(document, list):
        raise InvalidRequest("outputs is not a list", seen=type(document).__name__)
    wanted = []
    for item in document:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str):
            raise InvalidRequest("a requested output has no name", seen=item)
        binary = _mapping(item.get("parameters"), "parameters").get("binary_data")
        wanted.append(RequestedOutput(name, binary if isinstance(binary, bool) else None))
    return wanted or None


def _shape(name: str, shape: object) -> tuple[int, ...]:
    lengths, size = shape if isinstance(shape, list) else [None], 1
    for length in lengths[: MOST_AXES + 1]:
        if not _is_int(length) or not 0 <= length < 2**31:
            raise InvalidRequest(f"input {name} has no proper shape", seen=shape, allowed="a list of lengths")
        size *= length or 1
    # numpy's own bounds, which hold for empty tensors as well: a zero beside huge lengths is refused too.
    if len(lengths) > MOST_AXES or size > MOST_VALUES:
        raise InvalidRequest(f"the shape of input {name} is too large", seen=f"{len(lengths)} axes", allowed=MOST_AXES)
    return tuple(lengths)


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _mapping(value: object, what: str) -> Parameters:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"{what} is not an object", seen=type(value).__name__)
    return value


def _text_or_none(value: object, what: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{what} is not a string", seen=value)
    return value
