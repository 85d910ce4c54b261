"""Training in segments and serving on two logical accelerators of a real Ray: its gap, and the pool that closes it.

The scenario runs in a process of its own, on a cluster of its own, and prints what it measured; the tests judge that.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from paced import spec_of
from waves import EPOCHS, STEPS_PER_EPOCH, Waves, run_as_script


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_as_script(__file__, tmp_path_factory.mktemp("pool"))


def test_in_stock_ray_a_replica_waits_until_training_is_over(measured: dict[str, Any]) -> None:
    assert measured["stock"]["placed while training"] is False
    assert measured["stock"]["placed afterwards"] is True


def test_with_the_pool_training_yields_and_replicas_are_placed(measured: dict[str, Any]) -> None:
    assert len(measured["release_s"]) == 2
    # Far above what is measured (docs/pool.md): a busy machine must not fail this, a stuck hand-over must.
    assert max(measured["release_s"]) < 20
    assert measured["serving got one after"] < 30
    assert measured["serving got the other after"] < 30


def test_training_goes_on_with_what_is_left_and_parks_at_zero(measured: dict[str, Any]) -> None:
    assert measured["sizes"] == [2, 1, 0, 2]
    assert measured["steps while parked"] == 0


def test_no_step_is_lost_and_the_weights_are_those_of_an_undisturbed_run(measured: dict[str, Any]) -> None:
    assert measured["steps"] == EPOCHS * STEPS_PER_EPOCH
    assert measured["steps redone"] == 0
    assert measured["largest difference"] < 1e-5


def test_the_ledger_has_every_move(measured: dict[str, Any]) -> None:
    moves = measured["ledger"]
    assert [kind for kind, _ in moves if kind != "grant"] == ["resume", "shrink", "park", "resume"]
    assert [kind for kind, _ in moves].count("grant") == 2
    assert {phase for _, phase in moves} == {"done"}


def test_serve_tells_the_pool_what_it_wishes_before_it_has_it(measured: dict[str, Any]) -> None:
    assert measured["wished"] == {"wanted": 2, "min_replicas": 1, "max_replicas": 2}
    assert measured["replicas"] == 2


# What follows runs in the scenario's process.


class Scenario(Waves):
    """Training in segments."""

    def stock(self) -> dict[str, bool]:
        """Training has all accelerators, and one replica is asked for."""
        import ray

        hurry = self.folder / "hurry-stock"
        thread, _ = self.train(spec_of("2", 4, hurry))
        self.wait_until(lambda: self.step > 0)
        ping = self.replica.remote().ping.remote()
        before, _ = ray.wait([ping], timeout=2)
        hurry.touch()
        thread.join()
        after, _ = ray.wait([ping], timeout=60)
        return {"placed while training": bool(before), "placed afterwards": bool(after)}

    def pooled(self) -> dict[str, Any]:
        """A replica and another while training has what is left."""
        from tidepool.pool import coordinator

        self.open_the_pool()
        hurry = self.folder / "hurry-pooled"
        spec = spec_of("[0, 2]", EPOCHS, hurry, "train.resize=segments")
        thread, results = self.train(spec, coordinator.sharing(spec))
        facts: dict[str, Any] = {"sizes": [self.settled(2)]}
        self.further(20)
        facts["serving got one after"] = self.wave(1)
        facts["sizes"].append(self.settled(1))
        self.further(20)
        facts["serving got the other after"] = self.wave(1)
        facts["sizes"].append(self.settled(0, "parked"))
        parked_at, deadline = self.step, time.monotonic() + 1
        self.wait_until(lambda: time.monotonic() > deadline)
        facts["steps while parked"] = self.step - parked_at
        began = time.monotonic()
        self.ebb()
        facts["sizes"].append(self.settled(2))
        facts["training again after"] = time.monotonic() - began
        hurry.touch()
        thread.join()
        return facts | self.outcome(results[0])

    def served(self) -> dict[str, Any]:
        """A Serve application with ever more requests than one replica can answer."""
        import ray

        handle = self.deployed(2)

        def app() -> Any:
            apps = [app for pool in ray.get(self.coordinator.view.remote()) for app in pool.apps]
            return next((app for app in apps if app.name == "app"), None)

        def is_scaled() -> bool:
            for answer in [handle.remote() for _ in range(12)]:
                answer.result()
            found = app()
            return found is not None and found.replicas == found.wanted == 2

        self.wait_until(is_scaled)
        facts = {name: getattr(app(), name) for name in ("wanted", "min_replicas", "max_replicas")}
        return {"wished": facts, "replicas": app().replicas}


if __name__ == "__main__":
    scenario = Scenario(Path(os.environ["TIDEPOOL_HOME"]), slots=2)
    print(json.dumps({"stock": scenario.stock(), **scenario.pooled(), **scenario.served()}))
