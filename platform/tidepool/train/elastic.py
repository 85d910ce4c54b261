"""A training run as the pool moves it: one call of Ray Train a segment, all on the same checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from tidepool import checkpoint
from tidepool.telemetry.progress import Progress
from tidepool.train.board import relayed

Places = Mapping[str, int]
"""Workers by node."""


class Segments:
    """The run in segments. The pool knows it as `pool.segments.Training`."""

    def __init__(
        self,
        train: Callable[[int, Sequence[str]], None],
        board: Any,
        checkpoints: str,
        total: int,
        progress: Progress,
    ) -> None:
        """`train` goes through the segment of a number with a worker on each of the nodes, from the last checkpoint."""
        self._train, self._board, self._checkpoints = train, board, checkpoints
        self._total, self._progress = total, progress

    def segment(self, number: int, places: Places, began: Callable[[int], None]) -> int | None:
        """Train with these workers until the end (None), or until a notice for `number` (the steps done).

        `began` hears of the step that the workers go on from, when all of them are up.
        """
        nodes = [node for node, workers in places.items() for _ in range(workers)]
        with relayed(self._board, self._total, self._progress, began):
            self._train(number, nodes)
        newest = checkpoint.latest(self._checkpoints)
        done = newest.step if newest else 0
        return None if done == self._total else done

    def notice(self, number: int) -> None:
        """Let segment `number` end at its next step boundary, or before its first step."""
        self._board.give_notice.remote(number)


class Share(Protocol):
    """How a run takes part in the pool."""

    def __call__(self, run: str, accelerator: str, training: Segments, /) -> None:
        """Move the run through its segments until it is over."""
