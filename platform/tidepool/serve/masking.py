"""Keeps what is sensitive out of everything that is written.

A signature's sensitive fields have a rule each: `drop` leaves the field out, `hash` puts a keyed hash in its place (the
same value, the same hash, so that it can still be counted and joined; without the key it can't be guessed and checked),
`pattern:<regular expression>` blots out the matches. A rule that doesn't fit a value drops it: the safe side.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import SpecError
from tidepool.serve.protocol import Tensors

BLOT = b"***"
SHORTEST_KEY = 16

Values = npt.NDArray[Any]


class Mask:
    """The rules of one model: field name to `drop`, `hash` or `pattern:<regular expression>`."""

    def __init__(self, rules: Mapping[str, str], key: bytes = b"") -> None:
        """`key`: secret of the installation, for `hash`.

        Raises:
            SpecError: an unknown rule, a bad expression, or `hash` without a key.
        """
        self._rules = {name: _compile(name, rule, key) for name, rule in rules.items()}

    def __bool__(self) -> bool:
        return bool(self._rules)

    def tensors(self, tensors: Tensors) -> Tensors:
        """Tensors as they may be written: dropped ones are missing, hashed and blotted ones are BYTES."""
        masked = {}
        for name, values in tensors.items():
            rule = self._rules.get(name)
            shown = values if rule is None else rule(values)
            if shown is not None:
                masked[name] = shown
        return masked

    def record(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """A record as it may be written: text and bytes by their rule, other sensitive values not at all."""
        masked = {}
        for name, value in record.items():
            if name not in self._rules:
                masked[name] = value
            elif isinstance(value, str | bytes):
                raw = value.encode() if isinstance(value, str) else value
                shown = self.tensors({name: np.array([raw], dtype=np.object_)}).get(name)
                if shown is not None:
                    masked[name] = shown[0].decode(errors="replace")
        return masked


def outline(error: BaseException) -> str:
    """An error without its message, which may quote a client's data: its type, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return " <- ".join([type(error).__name__, *(f"{f.name} ({f.filename}:{f.lineno})" for f in reversed(frames))])


def _compile(name: str, rule: str, key: bytes) -> Callable[[Values], Values | None]:
    if rule == "drop":
        return lambda _: None
    if rule == "hash":
        if len(key) < SHORTEST_KEY:
            raise SpecError(
                f"field {name} is to be hashed without a key",
                seen=f"{len(key)} bytes",
                allowed=f"{SHORTEST_KEY} bytes or more",
                remedy="set TIDEPOOL_MASK_KEY",
            )
        return lambda values: _hashed(values, key)
    kind, _, expression = rule.partition(":")
    if kind != "pattern" or not expression:
        raise SpecError(f"field {name} has no such rule", seen=rule, allowed="drop, hash, pattern:<expression>")
    try:
        pattern = re.compile(expression.encode())
    except re.error as error:
        raise SpecError(
            f"the pattern of field {name} is no regular expression", seen=f"{expression}: {error}"
        ) from None
    return lambda values: _blotted(values, pattern)


def _hashed(values: Values, key: bytes) -> Values:
    """Hex HMAC-SHA256 of each element of BYTES, of each row of anything else."""
    if values.dtype == np.object_:
        flat, shape = list(values.reshape(-1)), values.shape
    else:
        flat, shape = [row.tobytes() for row in np.ascontiguousarray(values)], values.shape[:1]
    return _bytes_array([hmac.digest(key, item, hashlib.sha256).hex().encode() for item in flat], shape)


def _blotted(values: Values, pattern: re.Pattern[bytes]) -> Values | None:
    if values.dtype != np.object_:
        return None
    return _bytes_array([pattern.sub(BLOT, item) for item in values.reshape(-1)], values.shape)


def _bytes_array(items: list[bytes], shape: tuple[int, ...]) -> Values:
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array.reshape(shape)
