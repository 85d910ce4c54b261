"""The last question before a version is registered: does it answer as the trained network did?

Golden rows go the way that a client's request goes (JSON, checks, dataplane) and the way that a batch job goes; both
are compared with the answers that the trained, uncompressed network gave.
"""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tidepool.artifact import Artifact
from tidepool.errors import ExportError
from tidepool.recipe import DATATYPES
from tidepool.serve import codecs
from tidepool.serve.dataplane import Dataplane, Lineup, LoadedVersion, load_version
from tidepool.serve.protocol import Tensors

PATHS_AGREE = 1e-5
"""Largest difference between batch path and served path: the same code, up to JSON's rounding."""


def check(artifact: Artifact, tolerance: float) -> float:
    """The largest difference from the trained network, over both paths.

    The difference of floating-point outputs is the largest absolute one; of all others, the share of rows that differ.

    Raises:
        ExportError: over `tolerance`, or batch and served path differ from one another.
    """
    golden = artifact.golden()
    loaded = load_version("candidate", artifact)
    batch = loaded.answer(golden.inputs)
    served = _as_client(loaded, golden.inputs)
    for name, trained in golden.outputs.items():
        between = difference(batch[name], served[name])
        if not between <= PATHS_AGREE:
            raise ExportError(f"output {name} differs between batch and served path", seen=between, allowed=PATHS_AGREE)
        moved = difference(served[name], trained)
        if not moved <= tolerance:
            raise ExportError(
                f"output {name} differs from the trained network on the golden rows",
                seen=f"{moved:.4g}",
                allowed=tolerance,
                remedy="prune or quantise less, or raise export.parity_tolerance",
            )
    return max(difference(served[name], trained) for name, trained in golden.outputs.items())


def difference(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> float:
    """Largest absolute difference of floats, share of unequal rows of anything else; infinite if shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    if one.dtype.kind == "f":
        return float(np.max(np.abs(one.astype(np.float64) - other)))
    unequal = (one != other).reshape(len(one), -1)
    return float(np.mean(unequal.any(axis=1)))


def _as_client(loaded: LoadedVersion, inputs: Tensors) -> Tensors:
    """Answers as a client gets them: a JSON body in, a JSON body out."""
    dataplane = Dataplane("candidate")
    dataplane.flip(Lineup(loaded.version, {loaded.version: loaded}))
    datatypes = {spec.name: spec.datatype for spec in loaded.signature.inputs}
    response = asyncio.run(dataplane.infer(codecs.decode(codecs.encode_request(inputs, datatypes))))
    document = orjson.loads(codecs.encode(response)[0])
    return {
        tensor["name"]: values(tensor["datatype"], tensor["data"], tensor["shape"]) for tensor in document["outputs"]
    }


def values(datatype: str, data: list[Any], shape: list[int]) -> npt.NDArray[Any]:
    """A tensor as a client reads it from JSON; BYTES are text there."""
    items = [item.encode() for item in data] if datatype == "BYTES" else data
    return np.array(items, DATATYPES[datatype]).reshape(shape)
