"""Tensors as plain lists, made up for a signature, and their raw form. Without numpy, so that anyone can run this."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tidepool.conformance.case import Failed

FORMATS = {
    "BOOL": "?",
    "INT8": "b",
    "INT16": "h",
    "INT32": "i",
    "INT64": "q",
    "UINT8": "B",
    "UINT16": "H",
    "UINT32": "I",
    "UINT64": "Q",
    "FP16": "e",
    "FP32": "f",
    "FP64": "d",
}
"""`struct`'s letter for each datatype but BYTES."""
DATATYPES = (*FORMATS, "BYTES")
INTEGERS = tuple(name for name in FORMATS if "INT" in name)
FLOATS = ("FP16", "FP32", "FP64")
FREE_AXIS = 4
"""Length that is chosen for an axis of any length, other than the first."""


@dataclass(frozen=True)
class Spec:
    """A tensor in a model's metadata; -1 is an axis of any length."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor with its elements, row-major. Malformed requests hold tensors whose parts don't fit."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[Any]
    """bool, int, float, or bytes for BYTES."""


def make(spec: Spec, rows: int, seed: int) -> Tensor:
    """A tensor that fits `spec`, `rows` long if its first axis is free; equal seeds make equal elements.

    Elements are small and exact in every datatype: integers 0 and 1, floats in eighths below 1, short words.
    """
    shape = tuple(length if length >= 0 else rows if axis == 0 else FREE_AXIS for axis, length in enumerate(spec.shape))
    chance = random.Random(f"{spec.name} {seed}")
    return Tensor(spec.name, spec.datatype, shape, [_element(spec.datatype, chance) for _ in range(math.prod(shape))])


def _element(datatype: str, chance: random.Random) -> Any:
    if datatype == "BOOL":
        return chance.random() < 0.5
    if datatype == "BYTES":
        return chance.choice((b"a", b"tide", b"pool"))
    return chance.randrange(8) / 8 if datatype in FLOATS else chance.randrange(2)


def to_raw(tensor: Tensor) -> bytes:
    """Little-endian elements; each of BYTES after its length in four bytes."""
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(value)) + value for value in tensor.values)
    return struct.pack(f"<{len(tensor.values)}{FORMATS[tensor.datatype]}", *tensor.values)


def from_raw(spec: Spec, data: bytes) -> Tensor:
    """The inverse of `to_raw`.

    Raises:
        Failed: the bytes don't fit datatype and shape.
    """
    count = math.prod(spec.shape)
    if spec.datatype == "BYTES":
        values: Sequence[Any] = list(_split(data))
    elif len(data) == count * struct.calcsize(f"<{FORMATS[spec.datatype]}"):
        values = struct.unpack(f"<{count}{FORMATS[spec.datatype]}", data)
    else:
        raise Failed(f"output {spec.name} has {len(data)} bytes, which don't fit {spec.datatype} {list(spec.shape)}")
    return checked(Tensor(spec.name, spec.datatype, spec.shape, values))


def _split(data: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data.ljust(at + 4, b"\0"), at)
        if at + 4 + length > len(data):
            raise Failed(f"an element of BYTES is said to have {length} bytes, {max(len(data) - at - 4, 0)} are there")
        yield data[at + 4 : at + 4 + length]
        at += 4 + length


def checked(tensor: Tensor) -> Tensor:
    """`tensor`, its floats rounded to its datatype, so that equal tensors compare equal however they travelled.

    Raises:
        Failed: unknown datatype, a wrong number of elements, or elements of another kind or out of range.
    """
    if tensor.datatype not in DATATYPES:
        raise Failed(f"output {tensor.name} has datatype {tensor.datatype!r}")
    if len(tensor.values) != math.prod(tensor.shape):
        raise Failed(f"output {tensor.name} has {len(tensor.values)} elements and shape {list(tensor.shape)}")
    kinds = {"BOOL": bool, "BYTES": bytes}.get(tensor.datatype, int | float if tensor.datatype in FLOATS else int)
    wrong = [v for v in tensor.values if not isinstance(v, kinds) or (kinds is not bool and isinstance(v, bool))]
    if wrong:
        raise Failed(f"output {tensor.name} is {tensor.datatype} and holds {wrong[0]!r}")
    if tensor.datatype == "BYTES":
        return tensor
    try:
        values = struct.unpack(f"<{len(tensor.values)}{FORMATS[tensor.datatype]}", to_raw(tensor))
    except (struct.error, OverflowError):
        raise Failed(f"output {tensor.name} holds values out of the range of {tensor.datatype}") from None
    return Tensor(tensor.name, tensor.datatype, tensor.shape, values)


def nested(tensor: Tensor) -> Any:
    """The elements as lists in lists, one level an axis."""

    def level(values: Sequence[Any], shape: tuple[int, ...]) -> Any:
        if len(shape) <= 1:
            return list(values)
        step = len(values) // shape[0] if shape[0] else 0
        return [level(values[at * step : (at + 1) * step], shape[1:]) for at in range(shape[0])]

    return level(tensor.values, tensor.shape)


def flat(data: Any) -> list[Any]:
    """The elements of lists in lists."""
    if not isinstance(data, list):
        return [data]
    if any(isinstance(item, list) for item in data):
        return [element for item in data for element in flat(item)]
    return data


def rows(tensor: Tensor, at: int) -> Sequence[Any]:
    """The elements of row `at`."""
    step = math.prod(tensor.shape[1:])
    return tensor.values[at * step : (at + 1) * step]


def alike(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether elements are equal; floats up to the rounding of another order of summing."""
    if len(one) != len(other):
        return False
    return all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4) or (math.isnan(a) and math.isnan(b))
        if isinstance(a, float) and isinstance(b, float)
        else a == b
        for a, b in zip(one, other, strict=True)
    )
