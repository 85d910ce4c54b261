"""A live member: a worker that trains with these others, then with those, and keeps its state in between.

    prepare -> join an epoch -> go until told to end -> join the next one -> ...

The crew (`tidepool.train.crew`) says who is in which epoch. A member never has to be believed dead by the others: a
collective that fails leaves its state at the last step boundary, and it says so and waits for the next epoch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch

from tidepool.errors import TrainingError
from tidepool.train.board import teller
from tidepool.train.epochs import NO_STATE, Joined, Post, Stint
from tidepool.train.groups import Broken, Circle, Store, form
from tidepool.train.loop import Trainee
from tidepool.train.part import Part


class Member:
    """The actor's class. `end` and `abort` are called while another call is under way, the others one at a time."""

    def __init__(
        self,
        part: Part,
        store: Callable[[], Store],
        on_gpu: bool = False,
        clock: Callable[[], float] = time.monotonic,
        niceness: int = 0,
    ) -> None:
        """`store` connects to the one in which members meet. `niceness` is added to the process's own."""
        os.nice(niceness)  # of this thread and of those that it starts: torch's, the group's
        self._part, self._connect, self._clock = part, store, clock
        self._device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
        self._circle: Circle | None = None
        self._epoch = self._ended = 0
        self._loss = 0.0
        self._stepped_at: float | None = None
        self._saved_at = clock()
        self._saved: int | None = None
        self._trainee: Trainee
        self._store: Store

    def prepare(self) -> TrainingError | None:
        """Load the data, build the network, connect: all that takes long. Returns what is wrong."""
        try:
            self._trainee = self._part.trainee(None, self._device)
            self._store = self._connect()
        except Exception as error:
            return self._part.failure(0, 0, error)
        return None

    def join(self, post: Post) -> Joined | TrainingError | None:
        """Form the epoch's group with the others, and begin with the same state. None if others didn't come."""
        torch.set_num_threads(max(1, _cores() // post.neighbours))
        self._leave()
        try:
            if post.begin == "checkpoint" and post.rank == 0:
                self._saved = self._part.restore(self._trainee)
            if post.size > 1:
                self._circle = form(self._store, post.epoch, post.rank, post.size, self._device)
            if post.begin == "own":
                self._trainee.parallel.regroup(self._circle)
            else:
                self._trainee.synchronise(self._circle)
        except Broken:
            return None
        except Exception as error:
            return self._part.failure(post.rank, self._trainee.number, error)
        self._epoch = post.epoch
        paused_s = None if self._stepped_at is None else self._clock() - self._stepped_at
        return Joined(self._trainee.number, paused_s)

    def go(self, epoch: int) -> Stint:
        """Step until the run or the epoch is over."""
        trainee = self._trainee
        if self._epoch != epoch:
            return Stint("broken", trainee.number if self._epoch else NO_STATE)
        try:
            asked = self._go_through(trainee, epoch)
        except Broken:
            self._leave()
            return Stint("broken", trainee.number)
        except Exception as error:
            failure = self._part.failure(trainee.parallel.rank, trainee.number, error)
            self._leave()
            return Stint("failed", trainee.number, failure)
        return Stint("asked" if asked else "finished", trainee.number)

    def save(self) -> TrainingError | None:
        """Write a checkpoint of where this member is, between two epochs."""
        try:
            self._save()
        except Exception as error:
            return self._part.failure(0, self._trainee.number, error)
        return None

    def end(self, epoch: int) -> None:
        """Rank 0 lets all end their steps in this epoch at the next boundary; may come before the first step."""
        self._ended = max(self._ended, epoch)

    def abort(self, epoch: int) -> None:
        """One of this epoch is dead: don't wait for it."""
        circle = self._circle
        if self._epoch == epoch and circle is not None:
            circle.abort()

    def _go_through(self, trainee: Trainee, epoch: int) -> bool:
        """The steps; whether some are left, since rank 0 was told to end. Rank 0 saves now and then, and at the end."""
        leads = trainee.parallel.rank == 0
        tell = teller(self._part.board, trainee.total_steps, self._clock)
        every_s = self._part.spec.train.checkpoint_every_s
        while not trainee.finished:
            # Rank 0's wishes travel with the gradients, so that all members act on them after the same step.
            due = leads and self._clock() - self._saved_at >= every_s
            step, (ends, saves) = trainee.step(leads and self._ended >= epoch, due)
            self._stepped_at, self._loss = self._clock(), step.loss
            if leads:
                tell(step)
            if saves and leads:
                self._save()
            if saves:
                self._saved_at = self._clock()
            if ends and not trainee.finished:
                return True
        if leads:
            self._save()
        return False

    def _save(self) -> None:
        if self._saved != self._trainee.number:
            self._part.save(self._trainee, self._loss)
            self._saved = self._trainee.number

    def _leave(self) -> None:
        """Close the connections to the others, so that none waits for this one."""
        self._trainee.parallel.regroup(None)
        if self._circle is not None:
            self._circle.abort()
        self._circle = None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
