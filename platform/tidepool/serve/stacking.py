"""Requests to one batch and back, with as few copies as can be.

Requests share a batch when their rows have equal shapes. Where a signature leaves an axis open, rows differ in length:
they are filled up to the next of a few lengths if the recipe says how (`Pad`), and batched by exact shape otherwise.
Filling depends on the request alone, so that an answer never depends on the company it was computed in.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import RecipeError
from tidepool.recipe import TensorSpec
from tidepool.serve.protocol import Tensors

Array = npt.NDArray[Any]
Group = tuple[tuple[int, ...], ...]
"""The shape of a row, filled up, of each input in the signature's order."""


@dataclass(frozen=True)
class Pad:
    """Fills `axis` of an input (axis 0 counts the rows) with `value` up to the next of `lengths`.

    Only a network that ignores `value` (by a mask, say) may be given one. Inputs longer than all lengths stay as they
    are.
    """

    axis: int
    lengths: tuple[int, ...]
    value: float | bytes = 0
    outputs: Mapping[str, int] = field(default_factory=dict)
    """Outputs that are as long as the input, with the axis that is: they are cut back."""


class Stacking:
    """Joins and splits the requests of one signature."""

    def __init__(self, inputs: Sequence[TensorSpec], pads: Mapping[str, Pad] | None = None) -> None:
        self._names = [spec.name for spec in inputs]
        self._open = any(-1 in spec.shape[1:] for spec in inputs)
        self._pads = dict(pads or {})
        for name, pad in self._pads.items():
            spec = next((spec for spec in inputs if spec.name == name), None)
            if spec is None or not 0 < pad.axis < len(spec.shape) or spec.shape[pad.axis] != -1:
                raise RecipeError(f"input {name} has no open axis to pad", seen=pad.axis)
            if not pad.lengths or list(pad.lengths) != sorted(set(pad.lengths)):
                raise RecipeError(f"the lengths to pad input {name} to must ascend", seen=pad.lengths)

    def group(self, inputs: Tensors) -> Group:
        """What requests must have in common to share a batch."""
        if not self._open:
            return ()
        return tuple(self._filled(name, inputs[name].shape[1:]) for name in self._names)

    def size(self, group: Group, rows: int) -> int:
        """What the cost is learned by: rows or, where they differ in length, elements."""
        return rows * max(1, sum(map(math.prod, group)))

    def join(self, requests: Sequence[Tensors], group: Group) -> Tensors:
        """One batch of all rows: the request's own arrays if there is one that needs no filling, else one copy."""
        if len(requests) == 1 and not self._pads:
            return requests[0]
        targets = dict(zip(self._names, group, strict=True)) if group else {}
        return {
            name: self._join(name, [request[name] for request in requests], targets.get(name)) for name in self._names
        }

    def split(self, outputs: Tensors, requests: Sequence[Tensors], rows: Sequence[int]) -> list[Tensors]:
        """Each request's part of the outputs, as views.

        Raises:
            RecipeError: an output hasn't as many rows as went in, so that nobody can say whose is whose.
        """
        parts = [outputs] if len(requests) == 1 else _slices(outputs, rows)
        if not self._pads:
            return parts
        return [self._trimmed(part, request) for part, request in zip(parts, requests, strict=True)]

    def _filled(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        pad = self._pads.get(name)
        if pad is None:
            return shape
        axis = pad.axis - 1
        at = bisect_left(pad.lengths, shape[axis])
        return shape if at == len(pad.lengths) else (*shape[:axis], pad.lengths[at], *shape[axis + 1 :])

    def _join(self, name: str, arrays: list[Array], target: tuple[int, ...] | None) -> Array:
        if target is None or all(array.shape[1:] == target for array in arrays):
            return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        batch = np.full((sum(map(len, arrays)), *target), self._pads[name].value, arrays[0].dtype)
        start = 0
        for array in arrays:
            batch[(slice(start, start + len(array)), *map(slice, array.shape[1:]))] = array
            start += len(array)
        return batch

    def _trimmed(self, outputs: Tensors, request: Tensors) -> Tensors:
        trimmed = dict(outputs)
        for name, pad in self._pads.items():
            length = request[name].shape[pad.axis]
            for output, axis in pad.outputs.items():
                if output in trimmed:
                    trimmed[output] = trimmed[output][(slice(None),) * axis + (slice(length),)]
        return trimmed


def _slices(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    total = sum(rows)
    for name, values in outputs.items():
        if values.ndim == 0 or len(values) != total:
            shape = list(values.shape)
            raise RecipeError(f"output {name} has not one row for each row of the batch", seen=shape, allowed=total)
    ends = list(accumulate(rows))
    return [
        {name: values[end - count : end] for name, values in outputs.items()}
        for count, end in zip(rows, ends, strict=True)
    ]


def weight(tensors: Tensors) -> int:
    """The bytes that tensors hold."""
    return sum(
        sum(map(len, values.reshape(-1))) if values.dtype == np.object_ else values.nbytes
        for values in tensors.values()
    )
