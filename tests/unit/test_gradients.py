"""Integrated gradients of a served model, by the process beside its replica."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import save

from tidepool.artifact import Artifact, open_artifact
from tidepool.errors import InvalidRequest, StorageError, TidepoolError
from tidepool.evaluate.attributions import integrated_gradients
from tidepool.recipes.digits import Digits
from tidepool.serve.gradients import NICENESS, Gradients, Question
from waiting import wait_until

IMAGES = {"image": np.random.default_rng(0).uniform(0, 16, (3, 64)).astype(np.float32)}


@pytest.fixture
def artifact(make_artifact: Callable[..., Path]) -> Artifact:
    torch.manual_seed(0)
    return open_artifact(str(make_artifact(weights=save(Digits().network().state_dict()))))


@pytest.fixture
def gradients(home: Path) -> Iterator[Gradients]:
    asked = Gradients()
    yield asked
    asked.end()


def question(artifact: Artifact, **changes: Any) -> Question:
    return Question(**{"uri": artifact.uri, "digest": artifact.digest, "inputs": IMAGES, **changes})


def beside() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if explains(each)]


def explains(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "tidepool.serve.gradients" in process.cmdline()
    return False  # it has ended


def test_the_answers_are_those_of_the_network_and_one_process_gives_them_all(
    artifact: Artifact, gradients: Gradients
) -> None:
    async def all_at_once() -> list[Any]:
        asked = (question(artifact, target=target) for target in (None, 3, 10))
        return await asyncio.gather(*map(gradients.ask, asked), return_exceptions=True)

    likeliest, third, refused = asyncio.run(all_at_once())
    expected = integrated_gradients(artifact, IMAGES)
    np.testing.assert_allclose(likeliest.attributions["pixels"], expected.attributions["pixels"], atol=1e-5)
    assert likeliest.targets.tolist() == expected.targets.tolist()
    assert third.targets.tolist() == [3, 3, 3]
    assert isinstance(refused, InvalidRequest)
    assert "0 to 9" in str(refused)
    (process,) = beside()
    assert process.nice() == NICENESS
    gradients.end()
    wait_until(lambda: not beside())


def test_after_its_process_is_gone_the_next_question_gets_another(artifact: Artifact, gradients: Gradients) -> None:
    asyncio.run(gradients.ask(question(artifact)))
    (process,) = beside()
    process.kill()
    wait_until(lambda: not explains(process))
    assert asyncio.run(gradients.ask(question(artifact))).prediction == "logits"
    assert [each.pid for each in beside()] != [process.pid]


def test_who_gives_up_ends_what_was_done_for_him_and_nobody_elses(artifact: Artifact, gradients: Gradients) -> None:
    async def main() -> None:
        first = asyncio.ensure_future(gradients.ask(question(artifact)))
        await asyncio.to_thread(wait_until, lambda: bool(beside()))
        (process,) = beside()
        process.suspend()
        await given_up()  # while it waits for its turn
        process.resume()
        await first
        process.suspend()
        await given_up()  # while the process is at it
        assert (await gradients.ask(question(artifact))).prediction == "logits"
        assert process not in beside()

    async def given_up() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gradients.ask(question(artifact)), 0.1)

    asyncio.run(main())


def test_a_process_that_is_starting_goes_on_for_the_next_question(artifact: Artifact, gradients: Gradients) -> None:
    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(gradients.ask(question(artifact)), 0.1)
        await asyncio.to_thread(wait_until, lambda: bool(beside()))
        (process,) = beside()
        assert (await gradients.ask(question(artifact))).prediction == "logits"
        assert beside() == [process]

    asyncio.run(main())


@pytest.mark.parametrize(("kept_s", "is_left"), [(0.1, False), (3600.0, True)])
def test_the_process_ends_when_nobody_asks_or_the_replica_is_gone(kept_s: float, is_left: bool) -> None:
    command = [sys.executable, "-c", f"from tidepool.serve import gradients; gradients.main({kept_s})"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
        if is_left:
            process.stdin.close()
        assert process.wait(60) == 0


def test_what_goes_wrong_is_told(artifact: Artifact, gradients: Gradients, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        asyncio.run(gradients.ask(question(artifact, uri=str(tmp_path / "nothing"))))
    with pytest.raises(TidepoolError, match=r"can't be differentiated\. Seen: KeyError"):
        asyncio.run(gradients.ask(question(artifact, inputs={"picture": IMAGES["image"]})))


def test_a_process_that_dies_over_a_question_is_told_of(artifact: Artifact, gradients: Gradients) -> None:
    stop = threading.Event()

    def killing() -> None:
        while not stop.is_set():
            for each in beside():
                each.kill()
            stop.wait(0.01)

    killer = threading.Thread(target=killing)
    killer.start()
    try:
        with pytest.raises(TidepoolError, match="the process that explains ended"):
            asyncio.run(gradients.ask(question(artifact)))
    finally:
        stop.set()
        killer.join()
