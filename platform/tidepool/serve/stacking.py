"""Requests to one batch and back, with as few copies as can be.

Requests share a batch when their rows have equal shapes, also where a signature leaves an axis open and rows differ in
length: nothing is filled up, so that an answer never depends on the company it was computed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from tidepool.errors import RecipeError
from tidepool.recipe import TensorSpec
from tidepool.serve.protocol import Tensors

Group = tuple[tuple[int, ...], ...]
"""The shape of a row of each input in the signature's order."""


class Stacking:
    """Groups and joins the requests of one signature."""

    def __init__(self, inputs: Sequence[TensorSpec]) -> None:
        self._names = [spec.name for spec in inputs]
        self._open = any(-1 in spec.shape[1:] for spec in inputs)

    def group(self, inputs: Tensors) -> Group:
        """What requests must have in common to share a batch."""
        if not self._open:
            return ()
        return tuple(inputs[name].shape[1:] for name in self._names)

    def size(self, group: Group, rows: int) -> int:
        """What the cost is learned by: rows or, where they differ in length, elements."""
        return rows * max(1, sum(map(math.prod, group)))

    def join(self, requests: Sequence[Tensors]) -> Tensors:
        """One batch of all rows of requests of one group: the request's own arrays if there is one, else one copy."""
        if len(requests) == 1:
            return requests[0]
        return {name: np.concatenate([request[name] for request in requests]) for name in self._names}


def split(outputs: Tensors, rows: Sequence[int]) -> list[Tensors]:
    """Each request's part of the outputs, as views; request i has `rows[i]` of them.

    Raises:
        RecipeError: an output hasn't as many rows as went in, so that nobody can say whose is whose.
    """
    if len(rows) == 1:
        return [outputs]
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
