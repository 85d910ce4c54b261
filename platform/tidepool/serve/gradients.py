"""Integrated gradients for a replica, by a process beside it: they need torch, which replicas do without.

`Gradients.ask` is the replica's end: the process starts with the first question and has one at a time. `main` is the
process: it ends when nobody has asked for a minute, or when the replica is gone. What they send one another is pickled:
neither reads anything of anybody else's.
"""

from __future__ import annotations

import asyncio
import functools
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

KEPT_S = 60.0
"""How long the process stays after its last answer."""
NICENESS = 10
"""Of the process: those who want answers go first."""
NETWORKS_KEPT = 4


@dataclass(frozen=True)
class Question:
    """Which version's answer to explain, by what it predicts for `inputs`."""

    uri: str
    digest: str
    inputs: Tensors
    prediction: str | None = None
    target: int | None = None


class Gradients:
    """The replica's end, for all its models."""

    def __init__(self) -> None:
        self._turns = ThreadPoolExecutor(1, thread_name_prefix="gradients")
        self._process: subprocess.Popen[bytes] | None = None
        self._asked: Question | None = None
        """What the process is at."""

    async def ask(self, question: Question) -> Attributions:
        """What `integrated_gradients` says. One whose caller gives up ends the process, unless it isn't at it.

        Raises:
            TidepoolError: what `integrated_gradients` raised; or the process died.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._turns, self._answer, question)
        except asyncio.CancelledError:
            if self._asked is question:
                self.end()
            raise

    def end(self) -> None:
        """End the process at once; the next question gets another."""
        self._asked = None
        if self._process is not None:
            self._process.kill()

    def _answer(self, question: Question) -> Attributions:
        self._asked = question
        try:
            answer = self._exchange(question)
            if answer is None and self._asked is not None:  # nobody had asked for long, and it has just ended
                answer = self._exchange(question)
        finally:
            self._asked = None
        if answer is None:
            raise TidepoolError("the process that explains ended", remedy="send fewer rows, or ask for occlusion")
        if isinstance(answer, TidepoolError):
            raise answer
        return answer

    def _exchange(self, question: Question) -> Attributions | TidepoolError | None:
        """The process's answer; None if it ended without."""
        if self._process is None or self._process.poll() is not None:
            self._process = _started()
        to, back = self._process.stdin, self._process.stdout
        assert to is not None
        assert back is not None
        try:
            pickle.dump(question, to)
            to.flush()
            answer: Attributions | TidepoolError = pickle.load(back)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError):
            self._process.wait()
            return None
        return answer


def _started() -> subprocess.Popen[bytes]:
    """With this process's modules, recipes among them; on one thread, and on no GPU."""
    surroundings = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **surroundings, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "tidepool.serve.gradients"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def main() -> None:
    """Answer questions that come on the standard input, each on the standard output."""
    os.nice(NICENESS)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what recipes print is no answer
    thread, working = ThreadPoolExecutor(1), Future[None]()
    working.set_result(None)
    while True:
        if select.select([sys.stdin], [], [], KEPT_S)[0]:
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


@functools.lru_cache(NETWORKS_KEPT)
def _artifact(uri: str, digest: str) -> Artifact:
    return open_artifact(uri, Settings().root / "cache", digest)


if __name__ == "__main__":
    main()
