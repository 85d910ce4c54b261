"""An explanation as a picture: the input in grey, red where it speaks for the target, blue where against.

PNG is written here (https://www.w3.org/TR/png): a replica needs no library of pictures for one kind of file.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import InvalidRequest
from tidepool.recipe import Signature
from tidepool.serve.occlusion import Explanation, channels, grid_of
from tidepool.serve.protocol import Tensors

SIDE = 256
"""Pixels of the longer side of a small picture, at least."""
GAP = 8
"""Pixels between two rows' pictures, which stand beside one another."""
MOST_ROWS, MOST_PIXELS = 16, 1 << 24
FOR, AGAINST = np.array([0.85, 0.1, 0.1]), np.array([0.1, 0.25, 0.9])

Pixels = npt.NDArray[np.uint8]


def picture(signature: Signature, inputs: Tensors, explanation: Explanation) -> bytes:
    """A PNG of the first input that is a picture.

    Raises:
        InvalidRequest: none is, or the picture would be too large.
    """
    for spec in signature.inputs:
        attributions = explanation.attributions.get(spec.name)
        if attributions is None:
            continue
        grid = grid_of(spec, attributions.shape[1:])
        if len(grid) == 2 or channels(grid) is not None:
            rows = len(attributions)
            pixels = attributions.size
            if rows > MOST_ROWS or pixels > MOST_PIXELS:
                raise InvalidRequest("too many rows for one picture", seen=rows, allowed=MOST_ROWS)
            values = inputs[spec.name].reshape(rows, *grid)
            drawn = [drawing(*pair) for pair in zip(values, attributions.reshape(rows, *grid), strict=True)]
            return png(_beside_one_another(drawn))
    raise InvalidRequest("no input is a picture", remedy="ask for tensors, or give the recipe's TensorSpec a picture=")


def drawing(values: npt.NDArray[Any], attributions: npt.NDArray[np.float32]) -> Pixels:
    """One row of an input and its attributions, both (height, width) or with channels, as [height, width, 3]."""
    grey, weight = _plane(values).mean(axis=2), _plane(attributions).mean(axis=2)
    low, high = grey.min(), grey.max()
    grey = (grey - low) / (high - low) if high > low else np.full_like(grey, 0.5)
    largest = np.abs(weight).max()
    # The root, so that what weighs a tenth is seen beside what weighs most.
    share = np.sqrt(np.abs(weight) / largest if largest > 0 else np.zeros_like(weight))[..., None]
    colour = np.where(weight[..., None] > 0, FOR, AGAINST)
    pixels = ((1 - share) * grey[..., None] + share * colour) * 255
    times = max(1, -(-SIDE // max(grey.shape)))
    enlarged: Pixels = np.kron(pixels.round().astype(np.uint8), np.ones((times, times, 1), np.uint8))
    return enlarged


def png(pixels: Pixels) -> bytes:
    """[height, width, 3] as a PNG file."""
    height, width, _ = pixels.shape
    lines = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)  # filter 0: none
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _plane(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """As [height, width, channels]."""
    numbers = values.astype(np.float64)
    if numbers.ndim == 2:
        return numbers[..., None]
    return np.moveaxis(numbers, 0, 2) if channels(numbers.shape) == 0 else numbers


def _beside_one_another(drawn: list[Pixels]) -> Pixels:
    gap = np.full((len(drawn[0]), GAP, 3), 255, np.uint8)
    return np.concatenate([piece for each in drawn for piece in (gap, each)][1:], axis=1)
