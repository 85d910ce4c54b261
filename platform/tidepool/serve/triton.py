"""What Triton's clients ask for beyond the Open Inference Protocol: a model's configuration, the repository's index.

Source: Triton's protocol extensions "model configuration" and "model repository"
(https://github.com/triton-inference-server/server/tree/main/docs/protocol).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from tidepool.errors import InvalidRequest

Index = list[dict[str, str]]
"""One entry for each version in service: its name, version, state and, where it isn't READY, the reason."""

READY, UNAVAILABLE = "READY", "UNAVAILABLE"


def config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration, from its metadata. Its batches are none of the client's business: `max_batch_size` is 0,
    and `dims` have the axis of the rows as any other.
    """
    return {
        "name": metadata["name"],
        "platform": metadata["platform"],
        "max_batch_size": 0,
        "input": [_tensor(tensor) for tensor in metadata["inputs"]],
        "output": [_tensor(tensor) for tensor in metadata["outputs"]],
    }


def index(name: str, versions: Iterable[str], state: str = READY, reason: str = "") -> Index:
    """The entries of one model; one without a version if none is known."""
    return [{"name": name, "version": version, "state": state, "reason": reason} for version in list(versions) or [""]]


def wants_ready_only(body: bytes) -> bool:
    """What a request for the index says; an empty one wants all.

    Raises:
        InvalidRequest: it isn't `{"ready": true or false}`, nor empty.
    """
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        document = None
    ready = document.get("ready", False) if isinstance(document, dict) else None
    if not isinstance(ready, bool):
        raise InvalidRequest("not a request for the index", allowed='{"ready": true}, {"ready": false} or nothing')
    return ready


def listed(entries: Index, ready_only: bool) -> Index:
    """The entries to tell."""
    return [entry for entry in entries if entry["state"] == READY or not ready_only]


def _tensor(tensor: Mapping[str, Any]) -> dict[str, Any]:
    kind = "STRING" if tensor["datatype"] == "BYTES" else tensor["datatype"]
    return {"name": tensor["name"], "data_type": f"TYPE_{kind}", "dims": tensor["shape"]}
