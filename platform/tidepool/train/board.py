"""What the driver of a run hears of its workers, between two reports to Ray Train.

Reports can't carry that: each waits until all workers have reported and the controller has polled them.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tidepool.errors import TrainingError
from tidepool.telemetry.progress import Progress

if TYPE_CHECKING:
    from tidepool.train.loop import Step

log = logging.getLogger(__name__)

NAMESPACE = "tidepool"
EVERY_S = 0.1
"""Between two pieces of news, and between two looks at the board."""
ASK_EVERY_S = 0.05
"""Between two questions whether to end."""
PATIENCE_S = 5.0
"""How long Ray may take to notice that the driver that held a run is dead."""


@dataclass(frozen=True)
class News:
    """How far a run is."""

    step: int
    loss: float
    samples_per_s: float
    """Over all workers together, since they started."""


class Board:
    """An actor on which workers write what the driver reads. It dies with the driver."""

    def __init__(self) -> None:
        self._news: News | None = None
        self._starts: list[int] = []
        self._failures: list[TrainingError] = []
        self._noticed = 0

    def began(self, step: int) -> None:
        """All workers are up, and go on from `step`."""
        self._starts.append(step)

    def tell(self, news: News) -> None:
        """How far rank 0 is."""
        self._news = news

    def read(self) -> tuple[News | None, list[int]]:
        """The latest news, and the steps that attempts began at."""
        return self._news, self._starts

    def give_notice(self, segment: int) -> None:
        """Segments up to this one are to end at their next step boundary."""
        self._noticed = max(self._noticed, segment)

    def noticed(self, segment: int) -> bool:
        """Whether a segment is to end; never one of number 0, whose size is fixed."""
        return 0 < segment <= self._noticed

    def failed(self, failure: TrainingError) -> None:
        """A worker raised an error, which Ray Train may answer with another attempt."""
        self._failures.append(failure)

    def failure(self) -> TrainingError | None:
        """The last error that a worker raised."""
        return self._failures[-1] if self._failures else None

    def repeated(self) -> TrainingError | None:
        """An error that came twice, of the same worker at the same step: further attempts would meet it again."""
        texts = Counter(str(failure) for failure in self._failures)
        return next((failure for failure in self._failures if texts[str(failure)] > 1), None)


@contextlib.contextmanager
def claimed(name: str) -> Iterator[Any]:
    """The handle of a new board called `name`, which one driver of a cluster can hold at a time.

    Raises:
        TrainingError: another living driver holds it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    make = ray.remote(Board).options(name=name, namespace=NAMESPACE, num_cpus=0, scheduling_strategy=here)
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            board = make.remote()
            break
        except ValueError:  # the name is taken
            if time.monotonic() > deadline:
                raise TrainingError(
                    "another driver trains this run", seen=name, remedy="wait for it, or change train.seed"
                ) from None
            time.sleep(EVERY_S)
    try:
        yield board
    finally:
        ray.kill(board)


def teller(board: Any, total: int, clock: Callable[[], float] = time.monotonic) -> Callable[[Step], None]:
    """What rank 0 tells the board: of the last step, and of the others now and then, without waiting for an answer."""
    began = told_at = clock()
    samples = 0

    def tell(step: Step) -> None:
        nonlocal told_at, samples
        samples += step.samples
        now = clock()
        if step.number == total or now - told_at >= EVERY_S:
            told_at = now
            board.tell.remote(News(step.number, step.loss, samples / max(now - began, 1e-9)))

    return tell


def asker(board: Any, segment: int, clock: Callable[[], float] = time.monotonic) -> Callable[[], bool]:
    """Whether a segment is to end, as rank 0 asks the board now and then; the answer is that to an earlier question."""
    import ray

    if segment == 0:
        return lambda: False
    asked_at = -ASK_EVERY_S
    question: Any = None

    def should_yield() -> bool:
        nonlocal asked_at, question
        if question is None and clock() - asked_at >= ASK_EVERY_S:
            asked_at, question = clock(), board.noticed.remote(segment)
        if question is None or not ray.wait([question], timeout=0)[0]:
            return False
        answer, question = ray.get(question), None
        return bool(answer)

    return should_yield


@contextlib.contextmanager
def relayed(
    board: Any, total: int, progress: Progress, began: Callable[[int], None] = lambda _: None
) -> Iterator[None]:
    """Pass the news on to `progress` while the block runs, and once more at its end.

    `began` hears of the step from which the block's workers first go on.
    """
    import ray

    over = threading.Event()
    seen: tuple[News | None, list[int]] = ray.get(board.read.remote())
    first = len(seen[1])

    def relay() -> None:
        nonlocal seen
        while True:
            last = over.wait(EVERY_S)
            news, starts = seen_now = ray.get(board.read.remote())
            for index in range(len(seen[1]), len(starts)):
                if index == first:
                    began(starts[index])
                else:
                    log.warning("a worker failed: all go on from step %d", starts[index])
            if news and news != seen[0]:
                progress("train", news.step, total, f"loss {news.loss:.4f}, {news.samples_per_s:,.0f} samples/s")
            seen = seen_now
            if last:
                return

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
