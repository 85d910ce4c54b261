"""A crew at work whose members are threads, and a hook that paces their steps and lets them fail."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tidepool import checkpoint
from tidepool.errors import TrainingError
from tidepool.recipes.digits import Digits
from tidepool.spec import DataSpec, Spec, TrainSpec
from tidepool.train.crew import Crew
from tidepool.train.loop import Trainee
from tidepool.train.member import Member
from tidepool.train.part import Part
from tidepool.train.tracking import Run

ROWS, EPOCHS = 40, 60
SPEC = Spec(
    name="digits",
    recipe="tidepool.recipes.digits:Digits",
    data=DataSpec(source="builtin:digits"),
    train=TrainSpec(epochs=EPOCHS, global_batch_size=8, learning_rate=0.1, checkpoint_every_s=3600),
)
STEPS = EPOCHS * ROWS // 8
Hook = Callable[["Studied"], None]


def rows() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"pixels": rng.random((ROWS, 64), np.float32), "label": rng.integers(0, 10, ROWS)}


class Studied(Trainee):
    """A trainee before each of whose steps a hook is called; the steps that it applied."""

    alone = threading.Lock()

    def __init__(self, hook: Hook) -> None:
        with self.alone:  # torch's generator is that of all threads
            super().__init__(Digits(hidden=8), SPEC.train, rows())
        self.hook, self.applied = hook, list[int]()

    def step(self, *wishes: float) -> Any:
        self.hook(self)
        done = super().step(*wishes)
        self.applied.append(self.number)
        return done


class Death(BaseException):
    """What ends a thread as SIGKILL ends a process."""


@dataclass(frozen=True)
class Study(Part):
    """A part whose trainees are studied."""

    hook: Hook

    def trainee(self, group: Any, device: Any) -> Trainee:
        return Studied(self.hook)


class Pace:
    """Called before each step: rank 0 goes to a step and no further; the others wait for it in their collectives."""

    def __init__(self) -> None:
        self.goal, self.done = 0, 0
        self.moved = threading.Condition()
        self.deaths: set[tuple[int, int]] = set()
        """(rank, step): the member dies before it."""
        self.errors: Counter[int] = Counter()
        """How often rank 1 raises an error before a step."""

    def __call__(self, trainee: Studied) -> None:
        rank, number = trainee.parallel.rank, trainee.number
        with self.moved:
            if rank == 0:
                self.done = number
                self.moved.notify_all()
                assert self.moved.wait_for(lambda: number < self.goal, 60)
            if (rank, number) in self.deaths:
                self.deaths.remove((rank, number))
                raise Death
            if rank == 1 and self.errors[number]:
                self.errors[number] -= 1
                raise ValueError("a bug")

    def go_to(self, step: int) -> None:
        """Let it be so far."""
        with self.moved:
            self.goal = step
            self.moved.notify_all()
            assert self.moved.wait_for(lambda: self.done >= step, 60)

    def one_more(self) -> None:
        """Let another step be made, if the last one is."""
        with self.moved:
            self.goal += self.done >= self.goal
            self.moved.notify_all()

    def let_go(self) -> None:
        """To the end."""
        with self.moved:
            self.goal = STEPS
            self.moved.notify_all()


class Thread:
    """A member that is a thread: `crew.Hand`. Dismissed, it answers nothing more, whatever it hangs in."""

    def __init__(self, part: Study, store: Any, node: str) -> None:
        self.node, self.member = node, Member(part, lambda: store)
        self.pool = ThreadPoolExecutor(1)
        self.dismissed = False
        self.answers: list[Future[Any]] = []

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        answer: Future[Any] = Future()
        if self.dismissed:
            answer.set_exception(Death())
        else:
            self.answers.append(answer)
            self.pool.submit(self.run, answer, method, *arguments)
        return answer

    def run(self, answer: Future[Any], method: str, *arguments: Any) -> None:
        try:
            result = getattr(self.member, method)(*arguments)
        except Death:
            self.member._leave()
            self.dismiss()
            return
        with contextlib.suppress(InvalidStateError):  # dismissed meanwhile
            answer.set_result(result)

    def signal(self, method: str, *arguments: Any) -> None:
        getattr(self.member, method)(*arguments)

    def dismiss(self) -> None:
        self.dismissed = True
        for answer in self.answers:
            with contextlib.suppress(InvalidStateError):  # given
                answer.set_exception(Death())
        self.pool.shutdown(wait=False)


class Stage:
    """A crew at work in a thread, and what it tells."""

    def __init__(self, folder: Path, pace: Pace, max_failures: int = 3) -> None:
        self.pace = pace
        self.news: list[tuple[Mapping[str, int], bool, float, int]] = []
        self.changed = threading.Condition()
        self.hands: list[Thread] = []
        self.furthest = 0
        run = Run(str(folder / "run"), "digits", "1", "digest", "data", "digest", 0.0)
        board = SimpleNamespace(tell=SimpleNamespace(remote=self.tell))
        self.part = Study(SPEC, run, board, pace)
        store = dist.HashStore()
        self.checkpoints = run.checkpoints

        def hire(node: str) -> Thread:
            self.hands.append(Thread(self.part, store, node))
            return self.hands[-1]

        self.crew = Crew("training of digits failed", hire, lambda: self.furthest, max_failures)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self.train)

    def tell(self, news: Any) -> None:
        self.furthest = max(self.furthest, news.step)

    def train(self) -> None:
        try:
            self.crew.train(self.hear)
        except TrainingError as error:
            self.error = error

    def hear(self, places: Mapping[str, int], training: bool, pause_s: float, steps_redone: int) -> None:
        with self.changed:
            self.news.append((places, training, pause_s, steps_redone))
            self.changed.notify_all()

    def move(self, places: Mapping[str, int], training: bool = True) -> tuple[float, int]:
        """Have it there; the pause and the steps redone, as told then."""
        self.crew.move(places)
        return self.comes_to(places, training)

    def comes_to(self, places: Mapping[str, int], training: bool = True) -> tuple[float, int]:
        """Go on step by step until the crew tells that it is so."""
        deadline = time.monotonic() + 60
        with self.changed:
            while not self.changed.wait_for(lambda: bool(self.news) and self.news[-1][:2] == (places, training), 0.02):
                assert time.monotonic() < deadline, self.news
                self.pace.one_more()
            return self.news[-1][2:]

    def finish(self) -> dict[str, torch.Tensor]:
        """The weights in the end."""
        self.pace.let_go()
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.error:
            raise self.error
        final = checkpoint.latest(self.checkpoints)
        assert final is not None
        assert final.step == STEPS
        assert all(hand.dismissed for hand in self.hands)
        return checkpoint.load(final.uri).weights


def same(weights: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> bool:
    return all(float((weights[name] - others[name]).abs().max() / others[name].abs().max()) < 1e-5 for name in others)


def applied(hand: Thread) -> list[int]:
    trainee = hand.member._trainee
    assert isinstance(trainee, Studied)
    return trainee.applied
