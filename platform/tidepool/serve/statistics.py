"""What a version has done since it was loaded here, as Triton's statistics extension shows it.

Source: https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

NOT_MEASURED = ("queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss")
"""Parts of a request's time that Triton tells apart, and its clients expect to find."""


@dataclass(slots=True)
class Counts:
    """Of one version, in one replica."""

    requests: int = 0
    """Answered."""
    rows: int = 0
    """Of the requests that were answered."""
    answering_ns: int = 0
    """From a checked request to its outputs, waiting included; of all that were answered together."""
    failures: int = 0
    failing_ns: int = 0
    last: float = 0.0
    """When the last one was answered, in seconds since the epoch."""

    def answered(self, rows: int, nanoseconds: int) -> None:
        """A request was answered."""
        self.requests += 1
        self.rows += rows
        self.answering_ns += nanoseconds
        self.last = time.time()

    def failed(self, nanoseconds: int) -> None:
        """A request with proper tensors wasn't answered."""
        self.failures += 1
        self.failing_ns += nanoseconds

    def to_json(self, model: str, version: str, runs: int) -> dict[str, Any]:
        """An entry of `model_stats`; `runs` are those of the engine, each with a batch of one request or more."""
        return {
            "name": model,
            "version": version,
            "last_inference": int(self.last * 1e3),
            "inference_count": self.rows,
            "execution_count": runs,
            "inference_stats": {
                "success": {"count": self.requests, "ns": self.answering_ns},
                "fail": {"count": self.failures, "ns": self.failing_ns},
                **{part: {"count": 0, "ns": 0} for part in NOT_MEASURED},
            },
            "batch_stats": [],
        }
