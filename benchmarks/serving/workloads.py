"""What is asked: a network, one row, and that row on the wire in each of the forms that servers take."""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networks
import numpy as np
import numpy.typing as npt
import orjson

Row = npt.NDArray[Any]
JSON = {"content-type": "application/json"}
OCTETS = {"content-type": "application/octet-stream"}


@dataclass(frozen=True)
class Message:
    """A request's body and headers."""

    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Workload:
    """One network under one kind of request."""

    name: str
    title: str
    write: Callable[[Path], None]
    """Writes the network as ONNX."""
    recipe: str
    """The class in recipes.py."""
    input: str
    datatype: str
    make_row: Callable[[np.random.Generator], Row]
    binary: bool = False
    """Whether the row goes as bytes; answers are JSON all the same."""
    batch: int = 1
    """The largest batch that peers which can make batches are told to make; 1: none."""

    @property
    def row(self) -> Row:
        """The row that is asked for, with its batch axis."""
        return self.make_row(np.random.default_rng(1))[np.newaxis]

    def expected(self, model: Path) -> Row:
        """The last output for the row, as ONNX Runtime gives it here."""
        (answer,) = networks.session(model).run(None, {self.input: self.row})
        return networks.softmax(answer)["probabilities"] if self.write is networks.mlp else answer


def _image(rng: np.random.Generator) -> Row:
    return rng.random(networks.FEATURES, np.float32)


def _tokens(rng: np.random.Generator) -> Row:
    return rng.integers(0, networks.VOCABULARY, networks.TOKENS, np.int64)


def _picture(rng: np.random.Generator) -> Row:
    return rng.random((networks.CHANNELS, networks.SIDE, networks.SIDE), np.float32)


_PICTURES = (networks.pool, "Pool", "image", "FP32", _picture)
WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload("a", "784 floats as JSON, small perceptron", networks.mlp, "Mlp", "image", "FP32", _image),
        Workload("b", "128 tokens as JSON, encoder", networks.encoder, "Encoder", "tokens", "INT64", _tokens, batch=16),
        Workload("c", "3 x 224 x 224 floats as bytes, pooling", *_PICTURES, binary=True),
        Workload("c-json", "3 x 224 x 224 floats as JSON, pooling", *_PICTURES),
    )
}


def protocol_json(workload: Workload) -> Message:
    """The Open Inference Protocol."""
    row = workload.row
    tensor = {"name": workload.input, "shape": row.shape, "datatype": workload.datatype, "data": row.reshape(-1)}
    return Message(orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY), JSON)


def protocol_binary(workload: Workload) -> Message:
    """The Open Inference Protocol with its binary tensor data extension."""
    raw = workload.row.tobytes()
    parameters = {"binary_data_size": len(raw)}
    tensor = {"name": workload.input, "shape": workload.row.shape, "datatype": workload.datatype}
    head = json.dumps({"inputs": [{**tensor, "parameters": parameters}]}).encode()
    return Message(head + raw, {**OCTETS, "inference-header-content-length": str(len(head))})


def keyword_json(workload: Workload) -> Message:
    """Nested lists under the name of the function's argument, `rows`."""
    return Message(orjson.dumps({"rows": workload.row}, option=orjson.OPT_SERIALIZE_NUMPY), JSON)


def raw_bytes(workload: Workload) -> Message:
    """The row's bytes as the whole body."""
    return Message(workload.row.tobytes(), OCTETS)


def base64_json(workload: Workload) -> Message:
    """The row's bytes as base64 under `row`, in JSON."""
    return Message(json.dumps({"row": base64.b64encode(workload.row.tobytes()).decode()}).encode(), JSON)


def holds(answer: Any, expected: Row) -> bool:
    """Whether the numbers expected are somewhere in a JSON answer."""
    if isinstance(answer, dict):
        return any(holds(value, expected) for value in answer.values())
    with contextlib.suppress(TypeError, ValueError):  # not numbers, or lists of different lengths
        numbers = np.asarray(answer, float).reshape(-1)
        if numbers.size == expected.size and np.allclose(numbers, expected.reshape(-1), atol=1e-4):
            return True
    return isinstance(answer, list) and any(holds(item, expected) for item in answer)
