"""A training run as the pool moves it.

In segments: one call of Ray Train after another, all on the same checkpoints. Live: members that are Ray actors come
and go while the others train.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from tidepool import checkpoint
from tidepool.telemetry.progress import Progress
from tidepool.train.board import relayed
from tidepool.train.crew import Changed, Crew
from tidepool.train.part import NICENESS, Part

Places = Mapping[str, int]
"""Workers by node."""
MEMBER = "tidepool-member"
"""Begins the name of a member's actor, by which the pool tells who holds what: the run's name there, the node, and what
makes it unique follow after colons."""


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


class Live:
    """The run with live members. The pool knows it as `pool.live.Training`.

    They meet in a store of this process, and end with it: then the run goes on from its last checkpoint.
    """

    def __init__(self, part: Part, resource: str, total: int, progress: Progress) -> None:
        """Each member holds one `resource`."""
        import ray

        from tidepool.train import groups

        host = ray.util.get_node_ip_address()
        self._store = groups.opened(host)
        self._part, self._resource, self._total, self._progress = part, resource, total, progress
        self._connect = functools.partial(groups.connected, host, self._store.port)
        what = f"training of {part.spec.name} failed"
        self._crew = Crew(what, self._hire, self._reached, part.spec.train.max_failures)

    def move(self, places: Places) -> None:
        """See `crew.Crew.move`."""
        self._crew.move(places)

    def train(self, changed: Changed) -> None:
        """See `crew.Crew.train`."""
        with relayed(self._part.board, self._total, self._progress):
            self._crew.train(changed)

    def _hire(self, node: str) -> Hired:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from tidepool.train.member import Member

        named = {"GPU": "num_gpus", "CPU": "num_cpus"}.get(self._resource)
        holds: dict[str, Any] = {named: 1} if named else {"resources": {self._resource: 1}}
        run = f"{self._part.spec.name}/{self._part.run.run_id}"
        actor = ray.remote(concurrency_groups={SIGNALS: 1})(Member).options(
            **{"num_cpus": 0, **holds},
            name=f"{MEMBER}:{run}:{node}:{secrets.token_hex(4)}",
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        on_gpu = self._resource == "GPU"
        return Hired(actor.remote(self._part, self._connect, on_gpu, niceness=NICENESS), node)

    def _reached(self) -> int:
        import ray

        news, _ = ray.get(self._part.board.read.remote())
        return news.step if news else 0


SIGNALS = "signals"
"""Calls of this group don't wait for the others to return."""


class Hired:
    """A member that is a Ray actor: `crew.Hand`."""

    def __init__(self, actor: Any, node: str) -> None:
        self._actor, self.node = actor, node

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method, after those before it have returned; the result raises if the actor is dead."""
        result: Future[Any] = getattr(self._actor, method).remote(*arguments).future()
        return result

    def signal(self, method: str, *arguments: Any) -> None:
        """Call a method at once."""
        getattr(self._actor, method).options(concurrency_group=SIGNALS).remote(*arguments)

    def dismiss(self) -> None:
        """End the process."""
        import ray

        ray.kill(self._actor)


class Share(Protocol):
    """How a run takes part in the pool."""

    def __call__(self, run: str, accelerator: str, training: Segments | Live, /) -> None:
        """Move the run through its sizes until it is over."""
