"""Which parts of an input an answer rests on, for any model: cover one part after another and see what changes.

The attribution of a part is the score of the target with the input as it came, less the score with the part replaced
by a baseline (Zeiler and Fergus, 2014); all values of a part get the same. Every answer comes through `ask`, so that
nothing here knows engines, queues or transports.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import InvalidRequest
from tidepool.recipe import Signature, TensorSpec
from tidepool.serve.protocol import Parameters, Tensors

METHOD = "occlusion"
MOST_ROWS = 8192
"""Rows that the model answers for one explanation, at most."""
PIECES_OF_LINE, PIECES_OF_SIDE = 1024, 16
"""Parts along the axis of an input with one, and along each axis of others, where no window is asked for."""
KNOWN = ("output", "target", "window", "baseline")
"""Parameters of a request that say what to explain."""
COLOURS = (1, 3)
"""Lengths of an axis that holds the channels of a picture."""

Ask = Callable[[Tensors, int], Awaitable[Tensors]]
"""Raw inputs of so many rows to the signature's outputs."""
Array = npt.NDArray[Any]
Part = tuple[slice, ...]


@dataclass(frozen=True)
class Question:
    """What a request wants explained."""

    output: str
    target: int | None = None
    """Which value of the output; None for each row's largest."""
    window: tuple[int, ...] | None = None
    """Size of a part: one length for all axes, or one an axis; None for a size that fits."""
    baseline: float = 0.0
    """What a part is covered with."""

    @classmethod
    def of(cls, signature: Signature, parameters: Parameters) -> Question:
        """From a request's parameters `output`, `target`, `window` and `baseline`.

        Raises:
            InvalidRequest: one of them makes no sense for this model.
        """
        scores = [spec.name for spec in signature.outputs if spec.datatype.startswith("FP")]
        output = parameters.get("output", scores[0] if scores else None)
        if output not in scores:
            raise InvalidRequest("no such output to explain", seen=output, allowed=", ".join(scores) or "none is FP")
        target, window = parameters.get("target"), parameters.get("window")
        if target is not None and (type(target) is not int or target < 0):
            raise InvalidRequest("parameter target is not an index", seen=target, allowed="0 or more")
        window = [window] if type(window) is int else window
        if window is not None and not (isinstance(window, list) and window and all(map(_is_length, window))):
            raise InvalidRequest(
                "parameter window is not a size", seen=window, allowed="an integer, or one for each axis"
            )
        baseline = parameters.get("baseline", 0)
        if type(baseline) not in (int, float) or not math.isfinite(baseline):
            raise InvalidRequest("parameter baseline is not a number", seen=baseline)
        return cls(output, target, None if window is None else tuple(window), baseline)

    def targets(self, outputs: Tensors) -> npt.NDArray[np.int64]:
        """The explained index of each row's output, flattened.

        Raises:
            InvalidRequest: the output has no such value.
        """
        scores = _flat(outputs[self.output])
        if self.target is None:
            return np.asarray(scores.argmax(axis=1), np.int64)
        if self.target >= scores.shape[1]:
            allowed = f"0 to {scores.shape[1] - 1}"
            raise InvalidRequest(f"output {self.output} has no such target", seen=self.target, allowed=allowed)
        return np.full(len(scores), self.target)

    def scores(self, outputs: Tensors, targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """What the targets of all rows got."""
        scores: npt.NDArray[np.float32] = np.take_along_axis(_flat(outputs[self.output]), targets[:, None], axis=1)
        return scores[:, 0].astype(np.float32)


@dataclass(frozen=True)
class Explanation:
    """What an answer rests on."""

    attributions: dict[str, npt.NDArray[np.float32]]
    """Of each input of numbers, in its shape: above 0 where it speaks for the target, below where it speaks against."""
    output: str
    targets: npt.NDArray[np.int64]
    """Of each row."""


async def explain(signature: Signature, inputs: Tensors, question: Question, ask: Ask, at_once: int) -> Explanation:
    """Explain the answer to `inputs`; `ask` gets at most `at_once` rows at a time, or as many as `inputs` has.

    Raises:
        InvalidRequest: the question makes no sense for these inputs, or is too large.
    """
    explained = [spec for spec in signature.inputs if spec.datatype != "BYTES"]
    if not explained:
        raise InvalidRequest("no input is of numbers, so that none can be covered", seen=signature.inputs[0].datatype)
    rows = len(inputs[explained[0].name])
    parts = {spec.name: list(_parts(grid_of(spec, inputs[spec.name].shape[1:]), question)) for spec in explained}
    needed = rows * (1 + sum(map(len, parts.values())))
    if needed > MOST_ROWS:
        raise InvalidRequest(
            "that is too much to explain at once",
            seen=f"{needed} rows to answer",
            allowed=MOST_ROWS,
            remedy="send fewer rows, or a larger window",
        )
    outputs = await ask(inputs, rows)
    targets = question.targets(outputs)
    asked = _Asked(inputs, rows, question, targets, question.scores(outputs, targets), ask, at_once)
    attributions = {spec.name: await _occlude(asked, spec, parts[spec.name]) for spec in explained}
    return Explanation(attributions, question.output, targets)


@dataclass(frozen=True)
class _Asked:
    """What all inputs of one explanation have in common."""

    inputs: Tensors
    rows: int
    question: Question
    targets: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    ask: Ask
    at_once: int


async def _occlude(asked: _Asked, spec: TensorSpec, parts: list[Part]) -> npt.NDArray[np.float32]:
    """The attributions of one input, in its shape."""
    values = asked.inputs[spec.name]
    grid = (asked.rows, *grid_of(spec, values.shape[1:]))
    baseline = _baseline(spec, asked.question.baseline)
    attributions = np.zeros(grid, np.float32)
    step = max(1, asked.at_once // asked.rows)
    for first in range(0, len(parts), step):
        covered = parts[first : first + step]
        batch = {name: np.concatenate([array] * len(covered)) for name, array in asked.inputs.items()}
        view = batch[spec.name].reshape(len(covered), *grid)
        for number, part in enumerate(covered):
            view[number][(slice(None), *part)] = baseline
        outputs = await asked.ask(batch, len(covered) * asked.rows)
        scores = asked.question.scores(outputs, np.tile(asked.targets, len(covered))).reshape(-1, asked.rows)
        for part, change in zip(covered, asked.scores - scores, strict=True):
            attributions[(slice(None), *part)] = change.reshape(-1, *[1] * (len(grid) - 1))
    return attributions.reshape(values.shape)


def grid_of(spec: TensorSpec, row: tuple[int, ...]) -> tuple[int, ...]:
    """The axes along which a row is cut: those of the picture that it is, or its own."""
    return spec.picture if spec.picture is not None and math.prod(spec.picture) == math.prod(row) else row


def channels(grid: tuple[int, ...]) -> int | None:
    """Which axis of a picture holds its channels; None if it has none, or is no picture."""
    if len(grid) != 3:
        return None
    return 2 if grid[2] in COLOURS else 0 if grid[0] in COLOURS else None


def _parts(grid: tuple[int, ...], question: Question) -> Iterator[Part]:
    window = question.window or (None,)
    if len(window) not in (1, len(grid)) and grid:
        raise InvalidRequest("parameter window has a wrong number of axes", seen=list(window), allowed=len(grid))
    sizes = list(window) if len(window) == len(grid) else list(window) * len(grid)
    pieces = PIECES_OF_LINE if len(grid) == 1 else PIECES_OF_SIDE
    whole = channels(grid) if len(window) == 1 else None
    lengths = [
        length if axis == whole else size or max(1, -(-length // pieces))
        for axis, (length, size) in enumerate(zip(grid, sizes, strict=True))
    ]
    starts = (range(0, length, size) for length, size in zip(grid, lengths, strict=True))
    for corner in itertools.product(*starts):
        yield tuple(slice(start, start + size) for start, size in zip(corner, lengths, strict=True))


def _baseline(spec: TensorSpec, number: float) -> Any:
    with np.errstate(all="ignore"):
        value = np.float64(number).astype(spec.dtype)
    if spec.dtype.kind != "f" and value != number:
        raise InvalidRequest(f"parameter baseline is not {spec.datatype}", seen=number)
    return value


def _is_length(value: object) -> bool:
    return type(value) is int and value > 0


def _flat(output: Array) -> Array:
    return output.reshape(len(output), -1)
