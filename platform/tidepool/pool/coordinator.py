"""The pool's coordinator: a detached actor on the head node that lends accelerators from training to serving and back.

Runs hold a long poll on it and report in the same call; applications tell it what they need; it looks at the cluster by
itself a few times a second. What it knows it has from them, so that it can be killed at any time: whoever polls says
everything anew, and promises that were under way are void.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tidepool.errors import ClusterError, SpecError, TidepoolError
from tidepool.pool import live, machines, segments
from tidepool.pool.books import Books
from tidepool.pool.ledger import Ledger
from tidepool.pool.machines import Bundle
from tidepool.pool.policy import PolicySpec
from tidepool.pool.report import Report
from tidepool.pool.sight import Places, Sight, look
from tidepool.pool.state import LIVE, App, Snapshot
from tidepool.settings import Settings
from tidepool.spec import Spec

log = logging.getLogger(__name__)

NAME, NAMESPACE = "tidepool-pool", "tidepool"
TICK_S = 0.25
"""Between two looks at the cluster that nobody asked for."""
HOLD_S = 2.0
"""Seconds after which a poll without news is answered all the same."""
PATIENCE_S = 10.0
"""Seconds after which a coordinator that doesn't answer counts as gone."""


def ledger_path(settings: Settings) -> Path:
    """Where the ledger is."""
    return settings.root / "pool" / "ledger.jsonl"


class Coordinator:
    """The actor's class."""

    def __init__(
        self,
        ledger: str,
        spec: PolicySpec,
        look: Callable[[str], Sight] = look,
        clock: Callable[[], float] = time.time,
        tick_s: float = TICK_S,
        ask: Callable[[list[Bundle]], None] = machines.ask,
    ) -> None:
        """`ledger` is the path of the file; what an earlier coordinator left unfinished in it is void. `ask` tells the
        cluster autoscaler how many bought machines to keep.

        Raises:
            CorruptionError: the ledger is damaged.
            StorageError: it can't be read or written.
        """
        self._ledger = Ledger(Path(ledger), clock)
        for entry in self._ledger.unfinished():
            self._ledger.advance(entry.id, "aborted", outcome="the coordinator restarted")
        self._spec, self._look, self._clock, self._tick_s = spec, look, clock, tick_s
        self._ask, self._asked = ask, list[Bundle]()
        self._books: dict[str, Books] = {}
        self._turn = asyncio.Lock()
        self._news = asyncio.Condition()
        self._ticker: asyncio.Task[None] | None = None

    async def poll(self, report: Report, seen: Places) -> Places:
        """Where a run should be, once that isn't `seen` any more or after `HOLD_S`; {} if nowhere, or not yet."""
        async with self._settling(report.accelerator) as books:
            books.report(report, seen)

        def is_news() -> bool:
            return books.number(report.run) != report.number or books.target(report.run) != seen

        async with self._news:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait_for(is_news), HOLD_S)
        async with self._turn:
            return books.tell(report)

    async def tell(self, report: Report) -> None:
        """A report that waits for no answer."""
        async with self._settling(report.accelerator) as books:
            books.report(report, report.places)

    async def want(self, accelerator: str, **app: Any) -> None:
        """What an application needs now: the fields of `state.App` that it knows itself."""
        async with self._settling(accelerator) as books:
            books.want(App(**app))

    async def leave(self, run: str) -> None:
        """A run is over."""
        for accelerator, found in list(self._books.items()):
            if found.number(run) >= 0:
                async with self._settling(accelerator) as books:
                    books.leave(run)

    async def view(self) -> list[Snapshot]:
        """The pool of each accelerator type, as it is now."""
        return [books.pool for books in self._books.values()]

    @contextlib.asynccontextmanager
    async def _settling(self, accelerator: str) -> AsyncIterator[Books]:
        """One change of the books at a time, then what follows from it, then everybody hears of it."""
        self._ticker = self._ticker or asyncio.create_task(self._tick())
        async with self._turn:
            if accelerator not in self._books:
                self._books[accelerator] = Books(accelerator, self._ledger, self._look, self._spec, self._clock)
            books = self._books[accelerator]
            yield books
            try:
                await asyncio.to_thread(self._settle, books)
            except TidepoolError as error:
                log.error("the pool stays as it is: %s", error)
        async with self._news:
            self._news.notify_all()

    def _settle(self, books: Books) -> None:
        books.settle()
        each = self._spec.machines.accelerators
        order = [bundle for one in self._books.values() for bundle in machines.ordered(one.pool, each)]
        if order != self._asked:
            self._ask(order)
            self._asked = order

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            for accelerator in list(self._books):
                try:
                    async with self._settling(accelerator):
                        pass
                except Exception:
                    log.exception("a look at the cluster failed; the next one comes in %s s", self._tick_s)


class Desk:
    """The coordinator as a run's supervisor calls it: `line.Office`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def tell(self, report: Report) -> None:
        """Send a report, without waiting."""
        self._handle.tell.remote(report)

    def poll(self, report: Report, seen: Places) -> Places:
        """See `line.Office`.

        Raises:
            ClusterError: the coordinator doesn't answer.
        """
        places: Places = self._answer(self._handle.poll.remote(report, seen))
        return places

    def leave(self, run: str) -> None:
        """The run is over.

        Raises:
            ClusterError: the coordinator doesn't answer.
        """
        self._answer(self._handle.leave.remote(run))

    def _answer(self, reference: Any) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            return ray.get(reference, timeout=PATIENCE_S)
        except RayError as error:
            seen, remedy = type(error).__name__, "`tidepool status`, and the same again in a moment"
            raise ClusterError("the pool's coordinator doesn't answer", seen=seen, remedy=remedy) from error


def policy_of(settings: Settings) -> PolicySpec:
    """The policy that `TIDEPOOL_POOL` describes.

    Raises:
        SpecError: it isn't one.
    """
    try:
        return PolicySpec.model_validate_json(settings.pool)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        allowed = "JSON with settings of `PolicySpec`; see docs/pool.md"
        raise SpecError("TIDEPOOL_POOL is no policy", seen=f"{where}: {first['msg']}", allowed=allowed) from None


def start(settings: Settings, spec: PolicySpec | None = None) -> Any:
    """The handle of the cluster's coordinator, which is started on the head node if it isn't running.

    Raises:
        SpecError: `TIDEPOOL_POOL` isn't a policy, and none is given.
    """
    import ray

    options = {
        "name": NAME,
        "namespace": NAMESPACE,
        "get_if_exists": True,
        "lifetime": "detached",
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "max_concurrency": 10_000,
        "resources": {"node:__internal_head__": 0.001},
    }
    actor = ray.remote(Coordinator).options(**options)
    return actor.remote(str(ledger_path(settings)), spec or policy_of(settings))


def running() -> Any | None:
    """The handle of the cluster's coordinator, None if there is none."""
    import ray

    try:
        return ray.get_actor(NAME, namespace=NAMESPACE)
    except ValueError:
        return None


def sharing(spec: Spec) -> Callable[[str, str, segments.Training | live.Training], None] | None:
    """How a run of `spec` takes part in the pool: called with its name, its accelerator and itself, it returns when the
    run is over. None if the run is of fixed size, or no coordinator is running.
    """
    least, most = spec.train.num_workers
    handle = running() if least != most else None
    if handle is None:
        return None

    def share(run: str, accelerator: str, training: segments.Training | live.Training) -> None:
        import ray

        job, name = ray.get_runtime_context().get_job_id(), f"{spec.name}/{run}"
        report = Report(name, job, accelerator, least, most, since=time.time(), priority=spec.pool.priority)
        if isinstance(training, live.Training):
            live.Supervisor(replace(report, live=True, costs=LIVE), training, Desk(handle)).train()
        else:
            segments.Supervisor(report, training, Desk(handle)).train()

    return share
