"""The Open Inference Protocol's messages, free of any transport.

Source: the Open Inference Protocol v2 (kserve/open-inference-protocol), and the binary tensor data extension.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import InvalidRequest
from tidepool.recipe import DATATYPES, Signature, TensorSpec

SERVER_NAME = "tidepool"
MOST_PRIORITY = 100
MOST_NESTED = 8
"""Lists and objects in one another, in a request's parameter."""
EXTENSIONS = ("binary_tensor_data", "model_configuration", "model_repository", "schedule_policy", "statistics")
OF_HTTP = ("binary_tensor_data",)
"""Extensions that gRPC has no need of."""

Parameters = Mapping[str, Any]
Tensors = dict[str, npt.NDArray[Any]]
_DATATYPES = {dtype: name for name, dtype in DATATYPES.items()}


@dataclass(slots=True)
class RequestedOutput:
    """An output that the client asks for; `binary` is None when the request's default holds."""

    name: str
    binary: bool | None = None


@dataclass(slots=True)
class InferRequest:
    """One inference request: tensors by name, not yet checked against a signature."""

    inputs: Tensors
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    outputs: list[RequestedOutput] | None = None
    """None asks for all outputs."""
    binary_output: bool = False
    """Send outputs as raw bytes unless an output says otherwise."""


@dataclass(slots=True)
class InferResponse:
    """One answer: every tensor from one version of the model."""

    model: str
    version: str
    outputs: Tensors
    signature: Signature
    id: str | None = None
    parameters: Parameters = field(default_factory=dict)
    binary: frozenset[str] = frozenset()
    """Names of the outputs that travel as raw bytes."""


def check_inputs(signature: Signature, inputs: Tensors) -> int:
    """Check tensors against a signature; returns the number of rows.

    Raises:
        InvalidRequest: a tensor is missing, unknown, of another datatype or shape, or row counts differ.
    """
    if len(inputs) != len(signature.inputs) or any(spec.name not in inputs for spec in signature.inputs):
        raise _other_inputs(signature, inputs)
    rows = -1
    for spec in signature.inputs:
        values = inputs[spec.name]
        if values.dtype != spec.dtype:
            raise _other_datatype(spec, _DATATYPES.get(values.dtype, values.dtype))
        if not _fits(spec, values.shape):
            raise _other_shape(spec, list(values.shape))
        if rows not in (-1, len(values)):
            raise InvalidRequest("inputs differ in their number of rows", seen=len(values), allowed=rows)
        rows = len(values)
    if rows == 0:
        raise InvalidRequest("the request has no rows", seen=0, allowed="1 or more")
    return rows


def plainer(error: InvalidRequest, signature: Signature) -> InvalidRequest:
    """What is wrong with inputs that couldn't be read, in the words of the signature: their names if those aren't its
    own, else a datatype, else a shape; `error` itself where all of that is right.
    """
    specs = {spec.name: spec for spec in signature.inputs}
    names = [name for name, _, _ in error.told if isinstance(name, str)]
    if not names or len(names) != len(error.told):
        return error
    if set(names) != set(specs):
        return _other_inputs(signature, names)
    for name, (_, datatype, shape) in zip(names, error.told, strict=True):
        spec = specs[name]
        if datatype != spec.datatype:
            return _other_datatype(spec, datatype)
        if not isinstance(shape, list) or not _fits(spec, shape):
            return _other_shape(spec, shape)
    return error


def select_outputs(signature: Signature, request: InferRequest, outputs: Tensors) -> tuple[Tensors, frozenset[str]]:
    """The outputs that were asked for, in the order asked, and the names of those that travel as raw bytes.

    Raises:
        InvalidRequest: an output is asked for that the model doesn't have.
    """
    if request.outputs is None:
        return outputs, frozenset(outputs) if request.binary_output else frozenset()
    selected, binary = {}, set()
    for wanted in request.outputs:
        if wanted.name not in outputs:
            raise InvalidRequest(
                "no such output", seen=wanted.name, allowed=", ".join(t.name for t in signature.outputs)
            )
        selected[wanted.name] = outputs[wanted.name]
        if request.binary_output if wanted.binary is None else wanted.binary:
            binary.add(wanted.name)
    return selected, frozenset(binary)


def check_parameters(parameters: Parameters) -> None:
    """Refuse lists in lists in lists, over which whoever compares or writes them would stumble.

    Raises:
        InvalidRequest: more than `MOST_NESTED` in one another.
    """
    for name, value in parameters.items():
        if _is_nested(value, MOST_NESTED):
            raise InvalidRequest(f"parameter {name} is nested too deeply", allowed=f"{MOST_NESTED} in one another")


def _is_nested(value: object, most: int) -> bool:
    if not isinstance(value, list | dict):
        return False
    return most == 0 or any(_is_nested(one, most - 1) for one in (value if isinstance(value, list) else value.values()))


def urgency(parameters: Parameters) -> tuple[int, float | None]:
    """(priority, seconds until the answer is due) from a request's parameters `priority`, higher going first, and
    `timeout`, in microseconds as in Triton's extensions for schedule policy. 0 and None where they aren't given.

    Raises:
        InvalidRequest: one of them is not a number that makes sense.
    """
    priority, timeout = parameters.get("priority", 0), parameters.get("timeout", 0)
    if type(priority) is not int or abs(priority) > MOST_PRIORITY:
        allowed = f"an integer from -{MOST_PRIORITY} to {MOST_PRIORITY}, higher going first"
        raise InvalidRequest("parameter priority is not a priority", seen=priority, allowed=allowed)
    if type(timeout) is not int or timeout < 0:
        allowed = "microseconds, a whole number; 0 for none"
        raise InvalidRequest("parameter timeout is not a time", seen=timeout, allowed=allowed)
    return priority, timeout / 1e6 if timeout else None


def hurry(request: InferRequest, within_s: float) -> None:
    """Make an answer due in so many seconds, unless the request's own `timeout` wants it sooner."""
    timeout = request.parameters.get("timeout", 0)
    if type(timeout) is int and (timeout == 0 or timeout > within_s * 1e6):
        request.parameters = {**request.parameters, "timeout": max(1, int(within_s * 1e6))}


def zeros(signature: Signature, rows: int) -> Tensors:
    """Inputs of `rows` rows that fit a signature, for warming up; free axes are 1 long."""
    tensors = {}
    for spec in signature.inputs:
        shape = (rows, *(1 if length == -1 else length for length in spec.shape[1:]))
        tensors[spec.name] = np.full(shape, b"") if spec.datatype == "BYTES" else np.zeros(shape, spec.dtype)
        if spec.datatype == "BYTES":
            tensors[spec.name] = tensors[spec.name].astype(np.object_)
    return tensors


def _other_inputs(signature: Signature, names: Iterable[str]) -> InvalidRequest:
    return InvalidRequest(
        "the inputs are not the model's",
        seen=", ".join(names) or "none",
        allowed=", ".join(f"{t.name} {t.datatype} {list(t.shape)}" for t in signature.inputs),
    )


def _other_datatype(spec: TensorSpec, seen: object) -> InvalidRequest:
    return InvalidRequest(f"input {spec.name} has a wrong datatype", seen=seen, allowed=spec.datatype)


def _other_shape(spec: TensorSpec, seen: object) -> InvalidRequest:
    allowed = f"{list(spec.shape)}, -1 being any length"
    return InvalidRequest(f"input {spec.name} has a wrong shape", seen=seen, allowed=allowed)


def _fits(spec: TensorSpec, shape: Sequence[int]) -> bool:
    if len(shape) != len(spec.shape):
        return False
    return all(wanted in (-1, seen) for wanted, seen in zip(spec.shape, shape, strict=True))
