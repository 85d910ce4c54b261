"""Members of a live run and the coordinator are killed while accelerators change hands: the result is as undisturbed.

The scenario runs in a process of its own, on a cluster of its own, and prints what it measured; the tests judge that.
"""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from waves import EPOCHS, STEPS_PER_EPOCH, Waves, run_as_script

BATCH = 64


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_as_script(__file__, tmp_path_factory.mktemp("pool"))


def test_a_member_killed_in_a_hand_over_stops_neither_serving_nor_training(measured: dict[str, Any]) -> None:
    assert measured["serving got 2 of 4 after"] < 30
    assert measured["member killed, training again after"] < 15


def test_the_others_go_on_without_rank_0(measured: dict[str, Any]) -> None:
    assert measured["rank 0 killed, training again after"] < 15


def test_training_goes_on_without_the_coordinator_and_the_next_one_knows_it(measured: dict[str, Any]) -> None:
    assert measured["coordinator killed, training again after"] < 15
    assert measured["size after that"] == 4


def test_the_weights_are_those_of_an_undisturbed_run_and_no_sample_is_left_out(measured: dict[str, Any]) -> None:
    assert measured["steps"] == EPOCHS * STEPS_PER_EPOCH
    assert measured["largest difference"] < 1e-5
    assert measured["steps redone"] <= 1
    extra = {int(times): samples for times, samples in measured["uses"].items()}
    assert min(extra) == 0
    assert sum(times * samples for times, samples in extra.items()) <= 4 * BATCH, "of the steps that deaths cut off"


def test_the_ledger_is_whole_and_nothing_is_kept(measured: dict[str, Any]) -> None:
    phases = {phase for _, phase in measured["ledger"]}
    assert phases <= {"done", "aborted"}
    assert measured["free in the end"] == 4


# What follows runs in the scenario's process.


class Scenario(Waves):
    """Three kills."""

    def kills(self) -> dict[str, Any]:
        import ray

        self.begin()
        self.settled(4)
        self.further(5)
        members = self.members()
        self.coordinator.want.remote("slot", name="wave", wanted=2)
        os.kill(members[1], signal.SIGKILL)
        facts: dict[str, Any] = {"member killed, training again after": self.seconds_until_training()}
        facts["serving got 2 of 4 after"] = self.wave()
        self.settled(2)
        os.kill(self.members()[0], signal.SIGKILL)
        facts["rank 0 killed, training again after"] = self.seconds_until_training()
        self.settled(2)
        self.ebb()
        ray.kill(self.coordinator, no_restart=False)
        facts["coordinator killed, training again after"] = self.seconds_until_training()
        facts["size after that"] = self.settled(4)
        self.further(5)
        return facts | self.finish()

    def members(self) -> list[int]:
        """The processes of the run's members, in the order of their ranks: it is that in which they were hired."""
        from ray._private import state

        living = state.actors(actor_state_name="ALIVE").values()
        own = [actor for actor in living if actor["Name"].startswith("tidepool-member:")]
        return [actor["Pid"] for actor in sorted(own, key=lambda actor: actor["StartTime"])]

    def seconds_until_training(self) -> float:
        """Until the next three steps are made."""
        began = time.monotonic()
        self.further(3)
        return time.monotonic() - began


if __name__ == "__main__":
    print(json.dumps(Scenario(Path(os.environ["TIDEPOOL_HOME"])).kills()))
