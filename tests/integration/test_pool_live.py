"""A live run on four logical accelerators of a real Ray: members leave for replicas, come back, park, and resume.

The scenario runs in a process of its own, on a cluster of its own, and prints what it measured; the tests judge that.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from tidepool.train.part import NICENESS
from waves import EPOCHS, STEPS_PER_EPOCH, Waves, run_as_script

TEN_RESIZES = [3, 2, 1, 4, 3, 2, 1, 4, 0, 4]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_as_script(__file__, tmp_path_factory.mktemp("pool"))


def test_members_leave_come_back_park_and_resume(measured: dict[str, Any]) -> None:
    assert measured["sizes"] == [4, *TEN_RESIZES]
    moves = [(kind, phase) for kind, phase in measured["ledger"] if kind != "grant"]
    up_and_down = [*["shrink"] * 3, "grow"]
    assert moves == [(kind, "done") for kind in ("resume", *up_and_down, *up_and_down, "park", "resume")]
    assert [kind for kind, _ in measured["ledger"]].count("grant") == 10
    assert {phase for _, phase in measured["ledger"]} == {"done"}


def test_accelerators_are_released_soon_and_none_is_kept(measured: dict[str, Any]) -> None:
    assert len(measured["release_s"]) == 7
    # Far above what is measured (docs/pool.md): a busy machine must not fail this, a stuck hand-over must.
    assert max(measured["release_s"]) < 20
    assert measured["free in the end"] == 4


def test_members_give_way_to_replicas_for_processors(measured: dict[str, Any]) -> None:
    assert set(measured["niceness"]) == {measured["niceness without"] + NICENESS}


def test_no_step_is_lost_and_the_weights_are_those_of_an_undisturbed_run(measured: dict[str, Any]) -> None:
    assert measured["steps"] == EPOCHS * STEPS_PER_EPOCH
    assert measured["steps redone"] == 0
    assert measured["largest difference"] < 1e-5


def test_the_loss_curve_is_that_of_an_undisturbed_run(measured: dict[str, Any]) -> None:
    assert measured["largest difference of a loss"] < 1e-5


def test_every_sample_is_used_once_an_epoch(measured: dict[str, Any]) -> None:
    assert list(measured["uses"]) == ["0"]


# What follows runs in the scenario's process.


class Scenario(Waves):
    """A live run beside waves that rise and fall."""

    def live(self) -> dict[str, Any]:
        self.begin()
        facts: dict[str, Any] = {"sizes": [self.settled(4)]}
        self.further(2)
        facts["niceness without"] = psutil.Process().nice()
        facts["niceness"] = [psutil.Process(int(file.name)).nice() for file in self.used.iterdir()]
        for _ in range(2):
            for left in (3, 2, 1):
                self.further(2)
                self.wave(1)
                facts["sizes"].append(self.settled(left))
            self.further(2)
            self.ebb()
            facts["sizes"].append(self.settled(4))
        self.further(2)
        facts["serving got all 4 after"] = self.wave(4)
        facts["sizes"].append(self.settled(0, "parked"))
        self.ebb()
        facts["sizes"].append(self.settled(4))
        return facts | self.finish() | {"largest difference of a loss": self.difference_of_losses()}


if __name__ == "__main__":
    print(json.dumps(Scenario(Path(os.environ["TIDEPOOL_HOME"])).live()))
