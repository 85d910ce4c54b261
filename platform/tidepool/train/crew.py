"""The crew of a live run: who of its members is in which membership epoch, as the run's driver decides it.

    told where to be -> hire who is missing, let them prepare -> rank 0 ends the epoch at a step boundary
    -> those who are too many are dismissed -> the others form the next epoch, with those who have come

The others train while new ones prepare, so training stands still only while they meet. A member that dies ends the
epoch too: those left go on from the most advanced of them. The crew stays smaller then until it is told again where to
be. Nothing here knows Ray or torch: members are called through `Hand`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, Protocol

from tidepool.errors import TrainingError
from tidepool.train.epochs import NO_STATE, Begin, Joined, Post, Stint

log = logging.getLogger(__name__)


STRAGGLE_S = 5.0
"""After a death, a member that hangs for so long is given up: gloo doesn't always see that a connection closes."""

Places = Mapping[str, int]
"""Members by node."""


class Hand(Protocol):
    """A member, as the crew calls it."""

    node: str

    def call(self, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of `member.Member`, one call at a time; the result raises if the process is gone."""

    def signal(self, method: str, *arguments: Any) -> None:
        """Call `end` or `abort` while another call is under way; nothing is waited for."""

    def dismiss(self) -> None:
        """End its process, whatever it does."""


class Changed(Protocol):
    """Hears how a crew changes."""

    def __call__(self, places: Places, training: bool, pause_s: float, steps_redone: int) -> None:
        """Members that are processes or about to be; whether all of them train; for how long training stood still, and
        the steps that were lost, since all of them last did.
        """


class Crew:
    """Trains one run to its end, with members wherever it was last told to have them."""

    def __init__(
        self,
        what: str,
        hire: Callable[[str], Hand],
        reached: Callable[[], int],
        max_failures: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hire` starts a member on a node; `reached` knows of the furthest step that any member told of."""
        self._what, self._hire, self._reached, self._max_failures = what, hire, reached, max_failures
        self._clock = clock
        self._broken_at: float | None = None
        self._news = threading.Event()
        self._wanted: Places = {}
        self._members: list[Hand] = []
        """In the order of their ranks. The first has the state."""
        self._coming: dict[Hand, Future[Any]] = {}
        """Those who prepare themselves, and what becomes of that."""
        self._joins: list[Future[Any]] = []
        self._stints: list[Future[Any]] = []
        """Of the members in this epoch; empty between two."""
        self._epoch = 0
        self._training = self._asked = self._aborted = False
        self._alike, self._stateless = True, False
        self._troubled, self._furthest = False, 0
        self._failed = 0
        self._seen: set[str] = set()
        """Errors that members raised."""
        self._pause_s, self._redone = 0.0, 0
        self._told: tuple[Places, bool] = ({}, False)

    def move(self, places: Places) -> None:
        """Have so many members on these nodes, as soon as a step boundary allows. Returns at once."""
        self._wanted = dict(places)
        self._news.set()

    def train(self, changed: Changed) -> None:
        """Train to the end; without places, wait for some.

        Raises:
            TrainingError: members failed more than `max_failures` times, or one twice in the same way.
        """
        try:
            while not self._turn(changed):
                self._news.wait(None if self._broken_at is None else 1.0)
                self._news.clear()
        finally:
            for hand in (*self._members, *self._coming):
                hand.dismiss()

    def _turn(self, changed: Changed) -> bool:
        """Do what there is to do now; whether the run is over."""
        self._staff()
        if self._stints and all(stint.done() for stint in self._stints) and self._end_epoch():
            return True
        if not self._stints and self._is_due():
            self._form()
        self._hear_of_joins()
        if self._stints and not self._asked and self._is_due():
            self._asked = True
            self._members[0].signal("end", self._epoch)
        if self._stints and not self._aborted and any(stint.done() and stint.exception() for stint in self._stints):
            self._aborted = True
            for hand in self._members:
                hand.signal("abort", self._epoch)
        self._give_up_stragglers()
        self._tell(changed)
        return False

    def _give_up_stragglers(self) -> None:
        """End the members that hang in a broken epoch, if another has come back with the state."""
        done = [stint for stint in self._stints if stint.done()]
        back = [stint.result() for stint in done if not stint.exception()]
        if len(back) == len(done) and all(end.end != "broken" for end in back):
            self._broken_at = None
        elif self._broken_at is None:
            self._broken_at = self._clock()
        elif self._clock() - self._broken_at > STRAGGLE_S and any(end.step > NO_STATE for end in back):
            for hand, stint in zip(self._members, self._stints, strict=True):
                if not stint.done():
                    hand.dismiss()

    def _staff(self) -> None:
        """Hire and dismiss until there are as many as wanted, but for members, who leave at a step boundary."""
        for hand, preparing in list(self._coming.items()):
            if preparing.done() and (preparing.exception() or preparing.result()):
                del self._coming[hand]
                hand.dismiss()
                self._accept()
                self._fail([] if preparing.exception() else [preparing.result()], "new worker died")
        surplus = self._surplus([*self._members, *self._coming])
        for hand in (hand for hand in surplus if hand in self._coming):
            del self._coming[hand]
            hand.dismiss()
        have = self._places()
        for node in (Counter(self._wanted) - Counter(have)).elements():
            hand = self._hire(node)
            self._coming[hand] = self._awaited(hand.call("prepare"))

    def _is_due(self) -> bool:
        """Whether there is a reason to form another epoch, and everybody for it is there."""
        if self._surplus(self._members) or (self._members and not self._stints):
            return True
        return bool(self._coming) and all(preparing.done() for preparing in self._coming.values())

    def _end_epoch(self) -> bool:
        """Hear what the members did, and who is left; whether the run is over."""
        self._hear_of_joins()
        ends: list[Stint | None] = [None if stint.exception() else stint.result() for stint in self._stints]
        joins = [None if join.exception() else join.result() for join in self._joins]
        self._stints, self._training = [], False
        if ends[0] is not None and ends[0].end == "finished":
            return True
        left = [(end.step, hand) for end, hand in zip(ends, self._members, strict=True) if end is not None]
        left.sort(key=lambda one: -one[0])
        steps, died = [step for step, _ in left], len(ends) - len(left)
        self._members = [hand for _, hand in left]
        self._stateless, self._alike = max(steps, default=NO_STATE) == NO_STATE, len(set(steps)) == 1
        failures = [join for join in joins if isinstance(join, TrainingError)]
        failures += [end.failure for end in ends if end is not None and end.failure]
        if died or failures or any(end is not None and end.end == "broken" for end in ends):
            self._troubled, self._furthest = True, max(self._reached(), *steps, 0)
            if died:
                self._accept()
            self._fail(failures, "worker died" if died else "worker lost touch with the others")
        return False

    def _form(self) -> None:
        """Let the members that stay meet with those who have come, and those who are too many go."""
        leaving = self._surplus(self._members)
        staying = [hand for hand in self._members if hand not in leaving]
        if leaving and not staying and not self._stateless:
            self._save()
        ready = [hand for hand, preparing in self._coming.items() if preparing.done()]
        self._members = staying + ready
        self._epoch += 1
        self._asked = self._aborted = False
        lost = not staying or self._stateless
        begin: Begin = "checkpoint" if lost else "first" if ready or not self._alike else "own"
        for hand in ready:
            del self._coming[hand]
        joins = [hand.call("join", self._post(rank, hand, begin)) for rank, hand in enumerate(self._members)]
        self._joins = [self._awaited(join) for join in joins]
        self._stints = [self._awaited(hand.call("go", self._epoch)) for hand in self._members]
        for hand in leaving:
            hand.dismiss()

    def _post(self, rank: int, hand: Hand, begin: Begin) -> Post:
        here = sum(other.node == hand.node for other in self._members)
        return Post(self._epoch, rank, len(self._members), here, begin)

    def _hear_of_joins(self) -> None:
        """Note that the epoch's members train, once all of them do."""
        done = [join for join in self._joins if join.done() and not join.exception()]
        if self._training or not self._stints or len(done) < len(self._joins):
            return
        results = [join.result() for join in done]
        if any(result is None or isinstance(result, TrainingError) for result in results):
            return
        first: Joined = results[0]
        self._training = True
        self._pause_s += first.paused_s or 0.0
        if self._troubled:
            log.warning("a worker failed: all go on from step %d", first.step)
            self._redone += max(0, self._furthest - first.step)
            self._troubled = False

    def _save(self) -> None:
        """Write a checkpoint: nobody who goes on has the state."""
        for hand in self._members:
            saving = hand.call("save")
            if saving.exception():  # it died; the next one may be as far
                continue
            if failure := saving.result():
                raise failure
            return

    def _surplus(self, hands: list[Hand]) -> list[Hand]:
        """Those of them that are too many on their node, the last ones."""
        room = Counter(self._wanted)
        surplus = []
        for hand in hands:
            room[hand.node] -= 1
            if room[hand.node] < 0:
                surplus.append(hand)
        return surplus

    def _places(self) -> Places:
        return dict(Counter(hand.node for hand in (*self._members, *self._coming)))

    def _accept(self) -> None:
        """Want nobody back: whether a worker that died gets a successor, and where, is decided elsewhere."""
        self._wanted = Counter(self._wanted) & Counter(self._places())

    def _fail(self, errors: list[TrainingError], otherwise: str) -> None:
        """Count a failure: what members raised, or else what became of them.

        Raises:
            TrainingError: it was one too many, or the same error as one before.
        """
        self._failed += 1
        remedy = "see the logs of the cluster for its end; then train again: the run goes on"
        gone = TrainingError(f"{self._what}: a {otherwise}", seen="killed, or out of memory", remedy=remedy)
        for error in errors or [gone]:
            if str(error) in self._seen or self._failed > self._max_failures:
                raise error
        self._seen |= {str(error) for error in errors}

    def _tell(self, changed: Changed) -> None:
        now = self._places(), self._training and not self._coming
        if now != self._told:
            self._told = now
            changed(*now, self._pause_s, self._redone)
            if now[1]:
                self._pause_s, self._redone = 0.0, 0

    def _awaited(self, future: Future[Any]) -> Future[Any]:
        future.add_done_callback(lambda _: self._news.set())
        return future
