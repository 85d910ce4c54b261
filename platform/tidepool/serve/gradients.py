"""Integrated gradients for a replica, by a process beside it: they need torch, which replicas do without.

`Gradients.ask` is the replica's end: the process starts with the first question and has one at a time. `main` is the
process: it ends when nobody has asked for a minute, or when the replica is gone. What they send one another is pickled:
neither reads anything of anybody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import os
import pickle
import select
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO

from tidepool.artifact import Artifact, open_artifact
from tidepool.errors import TidepoolError
from tidepool.evaluate.attributions import Attributions, integrated_gradients
from tidepool.serve.protocol import Tensors
from tidepool.settings import Settings

GRACE_S = 1.0
"""How long the process may still be at a question that was given up: another takes longer to start."""
KEPT_S = 60.0
"""How long the process stays after its last answer."""
NICENESS = 10
"""Of the process: those who want answers go first."""
CHECKED = 4
"""Artifacts whose bytes aren't checked again."""


@dataclass(frozen=True)
class Question:
    """Which version's answer to explain, by what it predicts for `inputs`."""

    uri: str
    digest: str
    inputs: Tensors
    prediction: str | None = None
    target: int | None = None


@dataclass(eq=False)
class _Turn:
    question: Question
    given_up: bool = False


class Gradients:
    """The replica's end, for all its models."""

    def __init__(self) -> None:
        self._turns = ThreadPoolExecutor(1, thread_name_prefix="gradients")
        self._process: subprocess.Popen[bytes] | None = None
        self._at: _Turn | None = None
        """What the process is at."""

    async def ask(self, question: Question) -> Attributions:
        """What `integrated_gradients` says. A process that stays at what its caller has given up is ended; one that is
        still starting goes on, for whoever asks next.

        Raises:
            TidepoolError: what `integrated_gradients` raised; or the process died.
        """
        turn, loop = _Turn(question), asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._turns, self._answer, turn)
        except asyncio.CancelledError:
            turn.given_up = True
            loop.call_later(GRACE_S, self._give_up, turn)
            raise

    def end(self) -> None:
        """End the process at once; the next question gets another."""
        if self._process is not None:
            self._process.kill()

    def _give_up(self, turn: _Turn) -> None:
        if self._at is turn:
            self.end()

    def _answer(self, turn: _Turn) -> Attributions:
        answer = self._exchange(turn)
        if answer is None and not turn.given_up:  # nobody had asked for long, and it has just ended
            answer = self._exchange(turn)
        if answer is None:
            raise TidepoolError("the process that explains ended", remedy="send fewer rows, or ask for occlusion")
        if isinstance(answer, TidepoolError):
            raise answer
        return answer

    def _exchange(self, turn: _Turn) -> Attributions | TidepoolError | None:
        """The process's answer; None if it ended without, or nobody wants one."""
        process = self._running()
        if turn.given_up:
            return None
        self._at = turn
        try:
            pickle.dump(turn.question, _pipe(process.stdin))
            _pipe(process.stdin).flush()
            answer: Attributions | TidepoolError = pickle.load(_pipe(process.stdout))
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            process.wait()
            return None
        finally:
            self._at = None
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        """The process, once it is ready to be asked, or has ended instead."""
        if self._process is None or self._process.poll() is not None:
            self._process = _started()
            _pipe(self._process.stdout).readline()
        return self._process


def _pipe(end: IO[bytes] | None) -> IO[bytes]:
    assert end is not None  # as `_started` has it
    return end


def _started() -> subprocess.Popen[bytes]:
    """With this process's modules, recipes among them; on one thread, and on no GPU."""
    surroundings = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **surroundings, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tidepool.serve.gradients"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def main(kept_s: float = KEPT_S) -> None:
    """Answer questions that come on the standard input, each on the standard output."""
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what recipes print is no answer
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("captum.attr")  # and torch: what takes long
    answers.write(b"ready\n")
    answers.flush()
    thread, working = ThreadPoolExecutor(1), Future[None]()
    working.set_result(None)
    while True:
        if select.select([sys.stdin], [], [], kept_s)[0]:
            try:
                question = pickle.load(sys.stdin.buffer)
            except EOFError:
                break
            working = thread.submit(_reply, question, answers)
        elif working.done():
            break
    os._exit(0)  # whatever the thread is at, nobody waits for it


def _reply(question: Question, answers: IO[bytes]) -> None:
    answer: Attributions | TidepoolError
    try:
        artifact = _artifact(question.uri, question.digest)
        answer = integrated_gradients(artifact, question.inputs, question.prediction, question.target)
    except TidepoolError as error:
        answer = error
    except Exception as error:  # without its words, which may quote a client
        answer = TidepoolError("the network can't be differentiated", seen=type(error).__name__)
    pickle.dump(answer, answers)
    answers.flush()


@functools.lru_cache(CHECKED)
def _artifact(uri: str, digest: str) -> Artifact:
    return open_artifact(uri, Settings().root / "cache", digest)


if __name__ == "__main__":
    main()
