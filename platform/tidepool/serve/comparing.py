"""Asks a second version what a first one has answered, and compares: never in an answer's way.

One thread does it, and rests nineteen times as long as it has worked: it takes a twentieth of one processor at most,
whatever the traffic. What finds too much waiting is dropped and counted.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tidepool.recipe import Signature
from tidepool.serve.canary import Tally, disagree
from tidepool.serve.masking import outline
from tidepool.serve.protocol import Tensors
from tidepool.serve.splits import Share
from tidepool.serve.stacking import weight

log = logging.getLogger(__name__)

REST = 19.0
"""Seconds of rest for each second of work."""
MOST_WAITING, MOST_BYTES = 64, 16 << 20
"""Comparisons that may wait, and the bytes of their inputs and outputs."""


@dataclass(slots=True)
class Observed:
    """What a replica has seen of one canary or shadow."""

    share: Share
    tally: Tally = field(default_factory=Tally)
    failed: int = 0
    """Comparisons in which the version that was asked beside raised."""
    dropped: int = 0
    """Comparisons that weren't made, because too many were waiting."""

    def to_json(self) -> dict[str, Any]:
        """For `/stats`."""
        return {**asdict(self.share), **asdict(self.tally), "failed": self.failed, "dropped": self.dropped}


@dataclass(frozen=True, slots=True)
class Comparison:
    """An answer that was given, and who is asked besides."""

    inputs: Tensors
    given: Tensors
    ask: Callable[[Tensors], Tensors]
    outputs: Sequence[str]
    """Names of the outputs to compare."""
    observed: Observed


def compared_outputs(signature: Signature, chosen: Sequence[str]) -> list[str]:
    """The outputs by which two versions are compared: those `chosen`, else all that aren't floats, else all."""
    names = [spec.name for spec in signature.outputs]
    exact = [spec.name for spec in signature.outputs if spec.dtype.kind != "f"]
    return [name for name in names if name in chosen] or exact or names


class Comparer:
    """Compares answers in the background. Belongs to one event loop, but for its thread."""

    def __init__(self, tolerance: float, rest: Callable[[float], None] = time.sleep) -> None:
        """`tolerance`: by how much equal floats may differ."""
        self._tolerance, self._rest = tolerance, rest
        self._queue: queue.SimpleQueue[tuple[Comparison, int]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting = self._bytes = 0
        self._thread: threading.Thread | None = None

    def offer(self, comparison: Comparison) -> None:
        """Have it compared, or drop it rather than wait."""
        if self._waiting >= MOST_WAITING:
            comparison.observed.dropped += 1
            return
        size = weight(comparison.inputs) + weight(comparison.given)
        with self._lock:
            if self._bytes + size > MOST_BYTES:
                comparison.observed.dropped += 1
                return
            self._waiting += 1
            self._bytes += size
        self._queue.put((comparison, size))
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="comparisons", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while True:
            comparison, size = self._queue.get()
            began = time.monotonic()
            self._compare(comparison)
            with self._lock:
                self._waiting -= 1
                self._bytes -= size
            del comparison
            self._rest(REST * (time.monotonic() - began))

    def _compare(self, comparison: Comparison) -> None:
        observed = comparison.observed
        try:
            other = comparison.ask(comparison.inputs)
            differ = disagree(comparison.given, other, self._tolerance, comparison.outputs)
        except Exception as error:  # whatever one version does, the other goes on
            if not observed.failed:
                log.warning("version %s was asked in vain: %s", observed.share.version, outline(error))
            observed.failed += 1
            return
        observed.tally.compared += 1  # the event loop adds to others, so that neither undoes what the other does
        observed.tally.disagreed += differ
