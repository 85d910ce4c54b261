"""The `data` of a JSON tensor to an array; the plain case, one flat list of numbers, comes first and goes fast."""

from __future__ import annotations

import math
import struct
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import InvalidRequest
from tidepool.recipe import DATATYPES

_KINDS = {"b": "b", "i": "iu", "u": "iu", "f": "fiu"}
"""Kind of the wanted dtype to the kinds that JSON numbers may parse to."""
_SIGNED = {"INT8": "b", "INT16": "h", "INT32": "i", "INT64": "q"}
_FORMATS = {"FP32": "f", "FP64": "d", **_SIGNED, **{f"U{name}": letter.upper() for name, letter in _SIGNED.items()}}
"""How `struct` writes a datatype."""


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: object) -> npt.NDArray[Any]:
    """The array of an input's `data`, as JSON has it: flat, or nested as its shape is.

    Raises:
        InvalidRequest: it isn't a list, is ragged, or holds what isn't of the datatype or doesn't fit the shape.
    """
    dtype = DATATYPES[datatype]
    if datatype == "FP16":
        raise InvalidRequest(f"input {name}: FP16 has no JSON form", remedy="send it as a raw tensor")
    if not isinstance(data, list):
        raise InvalidRequest(f"the data of input {name} is not a list", seen=type(data).__name__)
    flat = None
    if datatype in _FORMATS:
        flat = data if len(data) == math.prod(shape) else _flat(data, shape)
    if flat is not None:
        try:
            return np.frombuffer(_packed(datatype, flat), dtype).reshape(shape)
        except (struct.error, OverflowError, TypeError):
            pass  # wrong in some way: what follows is slower and says how
    values = _strings(name, data) if datatype == "BYTES" else _numbers(name, datatype, dtype, data)
    if values.shape == shape:
        return values
    if values.ndim == 1 and values.size == math.prod(shape):
        return values.reshape(shape)
    raise InvalidRequest(
        f"input {name}: data and shape don't fit",
        seen=f"data of shape {list(values.shape)}",
        allowed=f"{list(shape)}, or {math.prod(shape)} values in one list",
    )


def _flat(data: list[Any], shape: tuple[int, ...]) -> list[Any] | None:
    """The values of a list that is nested as `shape` is, in one list; None if it isn't."""
    level: list[Any] = [data]
    for length in shape:
        if any(type(part) is not list or len(part) != length for part in level):
            return None
        level = list(chain.from_iterable(level))
    return level


def _packed(datatype: str, data: list[Any]) -> bytearray:
    """The bytes of a flat list of numbers, as strictly as `_numbers` has them and three times as fast.

    Raises:
        struct.error, OverflowError, TypeError: there are others than numbers of the datatype among them.
    """
    if data and isinstance(data[0], bool):
        raise TypeError("booleans")
    packed = bytearray(len(data) * DATATYPES[datatype].itemsize)
    struct.pack_into(f"<{len(data)}{_FORMATS[datatype]}", packed, 0, *data)
    return packed


def _numbers(name: str, datatype: str, dtype: np.dtype[Any], data: list[Any]) -> npt.NDArray[Any]:
    try:
        exact = np.array(data, dtype=np.object_)
        if str in set(map(type, exact.reshape(-1))):  # numpy would make all values as wide as the longest text
            raise InvalidRequest(f"input {name} holds values that are not {datatype}", seen=_offender(exact, dtype))
        parsed = np.array(data)
    except (ValueError, TypeError, OverflowError):
        raise InvalidRequest(f"the data of input {name} is ragged or not {datatype}") from None
    if not parsed.size:
        return np.empty(parsed.shape, dtype)
    if datatype == "UINT64" and parsed.dtype.kind == "f":
        parsed = _large_integers(parsed, exact)
    if parsed.dtype.kind not in _KINDS[dtype.kind]:
        raise InvalidRequest(f"input {name} holds values that are not {datatype}", seen=_offender(parsed, dtype))
    with np.errstate(over="ignore"):
        values = parsed.astype(dtype, copy=False)
    if dtype.kind == "f":
        if not np.isfinite(values).all():
            raise InvalidRequest(
                f"input {name} holds values too large for {datatype}", seen=parsed[~np.isfinite(values)][0]
            )
    elif parsed.dtype != dtype and not np.array_equal(values, parsed):
        raise InvalidRequest(
            f"input {name} holds values out of the range of {datatype}", seen=parsed[values != parsed][0]
        )
    return values


def _large_integers(parsed: npt.NDArray[Any], exact: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Integers of 2**63 and more beside smaller ones, which numpy alone would make floats of."""
    return exact.astype(np.uint64) if all(type(n) is int and n >= 0 for n in exact.reshape(-1)) else parsed


def _offender(parsed: npt.NDArray[Any], dtype: np.dtype[Any]) -> str:
    """A value of the wrong kind, for the message."""
    kinds = {"b": bool, "i": int, "u": int, "f": int | float}[dtype.kind]
    flat = parsed.reshape(-1).tolist()
    return repr(next((item for item in flat if not isinstance(item, kinds)), flat[0]))[:80]


def _strings(name: str, data: list[Any]) -> npt.NDArray[Any]:
    try:
        values = np.array(data, dtype=np.object_)
        flat = np.array([None, *(item.encode() for item in values.reshape(-1))], dtype=np.object_)[1:]
    except (AttributeError, ValueError, UnicodeEncodeError):
        raise InvalidRequest(f"the data of input {name} is ragged or not strings") from None
    return flat.reshape(values.shape)
