"""Adaptive batching in front of one engine; the main path is `Batcher.run`.

A request that finds the engine idle runs at once. While the engine works, requests gather in a `FairQueue`; when it is
free, the next batch is as large as pays (`Costs.best`) and as the latency objective allows (`Costs.holding`); only for
those that it has just answered may the engine wait (`Patience`). Cheap runs happen on the event loop, since a thread
costs 0.1 ms of its own; dear ones in a worker thread, with the next full batch on deck, so that the engine doesn't
stand idle while the event loop is busy.

A batch that fails is halved until the guilty request is alone (`isolate`): only that one gets the error.
"""

from __future__ import annotations

import asyncio
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

from tidepool.serve.costs import Costs
from tidepool.serve.isolation import isolate, presentable
from tidepool.serve.patience import Patience
from tidepool.serve.protocol import Tensors
from tidepool.serve.queueing import FairQueue, Load, Ticket, try_later
from tidepool.serve.stacking import Stacking, split, weight

INLINE_S = 0.002
"""Runs that are predicted to take longer go to a worker thread; shorter ones may follow one another for so long before
the event loop reads again: one at a time, a backlog of large bodies was read faster than it was answered."""
RECHOOSE_RUNS = 16
"""Cheap runs after which the limit of a batch is chosen anew; dear ones are worth it each time."""
GATHER_S, ALONE_S = 4e-5, 1e-4
"""A run that could save no more than the first by company, and is predicted to take no more than the second, never
gathers: to wait in the queue costs as much (benchmarks/serving)."""
PRUDENCE = 1.25
"""Predicted over expected time of the work in the queue: a late answer wastes the engine, a refusal doesn't."""
MAX_WAITING = 4096
"""Requests that may wait where nobody says how many."""
MEAN_WEIGHT = 0.125
"""Weight of the latest batch in the running mean of their sizes."""


@dataclass(slots=True, eq=False, kw_only=True)
class _Waiting(Ticket):
    """A request in the queue, and where its answer goes."""

    inputs: Tensors
    rows: int
    answer: asyncio.Future[Tensors]


class Batcher:
    """Answers requests with `call`, which maps a batch to outputs, row i to row i. Belongs to one event loop.

    Sizes are in rows, or in elements where the signature leaves a row's length open.
    """

    def __init__(
        self,
        call: Callable[[Tensors], Tensors],
        stacking: Stacking,
        slo_s: float,
        *,
        costs: Costs | None = None,
        largest: int = 1 << 20,
        workers: int = 1,
        inline_s: float = INLINE_S,
        max_requests: int = MAX_WAITING,
        max_bytes: int = 1 << 28,
        pool: Executor | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`slo_s`: what 99 of 100 answers should hold. `workers`: runs at a time, if `call` can be called so."""
        self._call, self._stacking, self._slo_s, self._clock = call, stacking, slo_s, clock
        self._largest, self._workers, self._inline_s = largest, workers, inline_s
        self.costs = costs or Costs()
        self.limit = 1
        """The largest size of a batch at present."""
        self.ran_s = 0.0
        """Seconds for which the worker threads have run."""
        self.arrived, self._arrived_size = 0, 0
        """Requests that have come, and the size of all together."""
        self._chosen_at = -RECHOOSE_RUNS
        # By a weak reference: who lets go of a batcher wants its memory at once, and not when the collector comes by.
        me = weakref.proxy(self)
        self._queue: FairQueue[_Waiting] = FairQueue(lambda size: me._drain(size), max_requests, max_bytes)
        self._pool = pool or ThreadPoolExecutor(workers, thread_name_prefix="engine")
        self._jobs: deque[float] = deque()
        """Predicted seconds of each batch that the worker threads have."""
        self._began = 0.0
        """When the first of them began."""
        self._company = False
        """Whether the last batch was of more than one request."""
        self._usual_size = 1.0
        """Of a batch: a running mean."""
        self._patience = Patience(slo_s)
        self._wake: asyncio.Handle | None = None
        """The coming call of `_next`."""
        self._patient = False
        """Whether that is for when patience ends, and not for the end of this pass of the event loop."""

    async def run(
        self, inputs: Tensors, rows: int, deadline: float = math.inf, priority: int = 0, key: str = ""
    ) -> Tensors:
        """The outputs for `inputs`. `deadline` is on the batcher's clock, `key` the id of the caller's API key.

        Raises:
            TryLater: the deadline can't be met, or the queue is full.
            Exception: what `call` raised for this request alone.
        """
        group = self._stacking.group(inputs)
        size = self._stacking.size(group, rows)
        self.arrived += 1
        self._arrived_size += size
        if self.costs.runs and not self._jobs and not self._queue:
            seconds = self.costs.seconds(size)
            if seconds <= GATHER_S or (seconds <= ALONE_S and self.costs.saving(size, size) <= GATHER_S):
                return self._run_alone(inputs, size)
            if seconds <= self._inline_s and self._wake is None and not self._company:
                # Those that arrive in this same pass of the event loop gather behind this one.
                self._wake = asyncio.get_running_loop().call_soon(self._next)
                return self._run_alone(inputs, size)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(
            inputs=inputs,
            rows=rows,
            answer=loop.create_future(),
            size=size,
            bytes=weight(inputs),
            deadline=deadline,
            priority=priority,
            key=key,
            group=group,
        )
        self._enqueue(waiting, loop)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            self._queue.remove(waiting)
            raise

    @property
    def is_busy(self) -> bool:
        """Whether a request that comes now has to wait for more than a pass of the event loop."""
        return bool(self._jobs)

    @property
    def load(self) -> Load:
        """What is waiting, and for how long."""
        seconds = self._busy_s(self._clock()) + self._work_s(self._queue.size)
        return Load(len(self._queue), self._queue.bytes, seconds)

    @property
    def pace(self) -> dict[str, float]:
        """What requests of the usual size cost here: see `Costs.pace`."""
        return self.costs.pace(self._arrived_size / self.arrived if self.arrived else 1.0, self._best_limit())

    def _run_alone(self, inputs: Tensors, size: int) -> Tensors:
        began = self._clock()
        try:
            outputs = self._call(inputs)
        except (SystemExit, KeyboardInterrupt, StopIteration) as raised:
            raise presentable(raised) from None
        self.costs.glance(size, began, self._clock)
        return outputs

    def _enqueue(self, waiting: _Waiting, loop: asyncio.AbstractEventLoop) -> None:
        now = self._clock()
        for gone in self._queue.push(waiting, now, self._busy_s(now)):
            _settle(gone, try_later("the queue is full, and others use less of it", self._drain(self._queue.size)))
        self._patience.arrived(now)
        if self._has_room() and (self._wake is None or (self._patient and self._wait_s(now) == 0)):
            self._wake_up(loop)

    def _wake_up(self, loop: asyncio.AbstractEventLoop, delay_s: float = 0.0) -> None:
        """Call `_next` after this pass of the event loop, or after `delay_s`, and not otherwise."""
        if self._wake is not None:
            self._wake.cancel()
        self._patient = delay_s > 0
        self._wake = loop.call_later(delay_s, self._next) if self._patient else loop.call_soon(self._next)

    def _next(self) -> None:
        """Give the engine what it can take."""
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if not self._queue:
            return
        loop, until = asyncio.get_running_loop(), self._clock() + self._inline_s
        while self._queue and self._has_room():
            now = self._clock()
            self._choose_limit()
            size = min(self._queue.size, self.limit)
            cheap = not self._jobs and self._is_cheap(size)
            wait_s = 0.0 if cheap or self._jobs else self._wait_s(now)
            if wait_s > 0:
                self._wake_up(loop, wait_s)
                return
            alone = not self._jobs and len(self._queue) == 1
            ready = -math.inf if alone else now + self._busy_s(now) + self.costs.expected(size)
            batch, late = self._queue.take(self.limit, ready)
            for waiting in late:
                _settle(waiting, try_later("the deadline passed in the queue", self._drain(self._queue.size)))
            self._company = len(batch) + len(late) > 1
            self._usual_size += MEAN_WEIGHT * (size - self._usual_size)
            if cheap and batch:
                self._run_inline(batch, loop)
                if self._queue and self._clock() + self.costs.seconds(size) > until:  # let others have their turn
                    self._wake_up(loop)
                    return
            elif batch:
                self._submit(batch, loop)

    def _run_inline(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        began = self._clock()
        try:
            answers = self._compute(batch)
        except BaseException as raised:
            if len(batch) == 1:
                _settle(batch[0], presentable(raised))
            else:
                self._submit(batch, loop)
            return
        self.costs.observe(sum(waiting.size for waiting in batch), self._clock() - began)
        for waiting, answer in zip(batch, answers, strict=True):
            _settle(waiting, answer)

    def _submit(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        if not self._jobs:
            self._began = self._clock()
        self._jobs.append(self.costs.expected(sum(waiting.size for waiting in batch)))
        self._pool.submit(self._work, batch, loop)

    def _work(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """In a worker thread: compute a batch that nobody has given up on, and hand the outcomes over."""
        began = self._clock()
        batch = [waiting for waiting in batch if not waiting.answer.cancelled()]
        outcomes = isolate(self._compute, batch)
        loop.call_soon_threadsafe(self._finish, batch, outcomes, self._clock() - began)

    def _finish(self, batch: list[_Waiting], outcomes: list[Tensors | Exception], seconds: float) -> None:
        self._jobs.popleft()
        self.ran_s += seconds
        self._began = self._clock()
        self._patience.answered(len(batch), self._began)
        if batch and not any(isinstance(outcome, Exception) for outcome in outcomes):
            self.costs.observe(sum(waiting.size for waiting in batch), seconds)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            _settle(waiting, outcome)
        self._next()

    def _compute(self, batch: Sequence[_Waiting]) -> list[Tensors]:
        outputs = self._call(self._stacking.join([waiting.inputs for waiting in batch]))
        return split(outputs, [waiting.rows for waiting in batch])

    def _wait_s(self, now: float) -> float:
        return self._patience.wait_s(now, len(self._queue), self._queue.size, self.limit, self.costs)

    def _choose_limit(self) -> None:
        dear = not self._is_cheap(self.limit)
        if self.costs.runs - self._chosen_at >= (1 if dear else RECHOOSE_RUNS):
            self._chosen_at = self.costs.runs
            self.limit = self._best_limit()

    def _best_limit(self) -> int:
        return min(self.costs.best(self._largest), self.costs.holding(self._slo_s, self._largest))

    def _has_room(self) -> bool:
        spare = self._workers - len(self._jobs)
        return spare > 0 or (spare == 0 and self._queue.size >= self.limit)

    def _is_cheap(self, size: int) -> bool:
        return self.costs.runs > 0 and self.costs.seconds(size) <= self._inline_s

    def _drain(self, size: int) -> float:
        """Seconds within which work of this size is done for certain."""
        return PRUDENCE * self._work_s(size) + self.costs.excess_s

    def _work_s(self, size: int) -> float:
        usual = min(int(self._usual_size), self.limit)
        return self.costs.drain(size, self.limit, usual) / self._workers

    def _busy_s(self, now: float) -> float:
        """Predicted seconds until the worker threads have done what they have."""
        if not self._jobs:
            return 0.0
        return (sum(self._jobs) - min(now - self._began, self._jobs[0])) / self._workers


def _settle(waiting: _Waiting, outcome: Tensors | Exception) -> None:
    if waiting.answer.done():
        return
    if isinstance(outcome, Exception):
        waiting.answer.set_exception(outcome)
    else:
        waiting.answer.set_result(outcome)
