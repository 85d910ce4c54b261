"""A run's driver, Serve's controller and a whole node are killed while accelerators change hands.

Three nodes with addresses of their own: the head, and two with two logical accelerators each. An application of real
Serve answers all the time; the run's driver, in which its supervisor is, is a process of its own. The scenario prints
what it measured; the tests judge that.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from paced import spec_of
from tidepool.cluster.local import LOOPBACK
from waves import EPOCHS, STEPS_PER_EPOCH, Waves, run_as_script

LOW, HIGH = 1, 8
"""Requests at a time that need one replica, and three."""
DEADLINE_S = 120
"""How long it may take on a crowded machine; docs/pool.md has what it took on a quiet one."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_as_script(__file__, tmp_path_factory.mktemp("pool"))


@pytest.mark.parametrize("killed", ["controller", "driver", "node"])
def test_the_pool_is_consistent_again_soon(killed: str, measured: dict[str, Any]) -> None:
    assert measured[f"{killed} killed, consistent after"] < DEADLINE_S


@pytest.mark.parametrize("killed", ["controller", "driver", "node"])
def test_serving_keeps_answering(killed: str, measured: dict[str, Any]) -> None:
    assert measured[f"{killed} killed, longest silence"] < DEADLINE_S


def test_only_what_was_under_way_on_the_lost_node_is_not_answered(measured: dict[str, Any]) -> None:
    assert measured["controller killed, unanswered"] == 0
    assert measured["driver killed, unanswered"] == 0
    assert measured["node killed, unanswered"] <= HIGH


def test_the_run_ends_with_the_weights_of_an_undisturbed_one(measured: dict[str, Any]) -> None:
    assert measured["resumed from"] > 0
    assert measured["steps"] == EPOCHS * STEPS_PER_EPOCH
    assert measured["largest difference"] < 1e-5


def test_the_ledger_is_whole_and_nothing_is_kept(measured: dict[str, Any]) -> None:
    assert {phase for _, phase in measured["ledger"]} <= {"done", "aborted"}
    assert measured["free in the end"] == 1


# What follows runs in the scenario's processes.


class Traffic:
    """Clients that ask one request after another; when they got answers, and how many they didn't get."""

    def __init__(self, handle: Any) -> None:
        self._level, self._changed = 0, threading.Condition()
        self.answers: list[float] = []
        self.unanswered = 0
        self._handle = handle
        for number in range(HIGH):
            threading.Thread(target=self._ask, args=(number,), daemon=True).start()

    def _ask(self, number: int) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: number < self._level)
            try:
                self._handle.remote().result(timeout_s=30)
            except Exception as error:
                print("unanswered:", repr(error)[:300], file=sys.stderr)
                self.unanswered += 1
            else:
                self.answers.append(time.monotonic())

    def rise_or_fall(self, level: int) -> None:
        """Have so many clients ask."""
        with self._changed:
            self._level = level
            self._changed.notify_all()

    def longest_silence(self, since: float) -> float:
        """Seconds without any answer."""
        answers = sorted(at for at in list(self.answers) if at >= since)
        return max(
            after - before for before, after in zip([since, *answers], [*answers, time.monotonic()], strict=True)
        )


class Scenario(Waves):
    """Three kills."""

    def connect(self) -> None:
        """Start a cluster of three nodes, and make this process a driver on its head."""
        import ray
        from ray.cluster_utils import Cluster

        beat = {"health_check_period_ms": 1000}  # a node that misses five is dead to Ray; else 3 s each
        head = {"num_cpus": 6, "include_dashboard": False, "node_ip_address": "127.0.0.1", "_system_config": beat}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes = [
            self.cluster.add_node(wait=False, num_cpus=2, resources={"slot": 2}, node_ip_address=f"127.0.0.{number}")
            for number in (2, 3)
        ]
        self.address = self.cluster.address.replace("127.0.0.1", LOOPBACK)
        ray.init(address=self.address, log_to_driver=False)
        self.cluster.wait_for_nodes()

    def outages(self) -> dict[str, Any]:
        import ray

        self.open_the_pool()
        self.traffic = Traffic(self.deployed(3))
        self.traffic.rise_or_fall(LOW)
        driver = self.driver()
        self.consistent(1, [3])
        facts = self.killed("controller", lambda: os.kill(self.controller(), signal.SIGKILL), 3, [1])
        self.traffic.rise_or_fall(LOW)
        self.consistent(1, [3])
        facts |= self.killed("driver", driver.kill, 3, [])
        driver = self.driver()
        self.consistent(3, [1])
        self.traffic.rise_or_fall(LOW)
        self.consistent(1, [3])
        facts |= self.killed("node", self.lose_a_node, 2, [0])
        self.traffic.rise_or_fall(LOW)
        self.consistent(1, [1])
        self.further(3)
        self.hurry.touch()
        assert driver.wait() == 0
        self.consistent(1, [])
        result = pickle.loads((self.folder / "result").read_bytes())
        facts["resumed from"] = result.resumed_from
        facts["free in the end"] = ray.available_resources()["slot"]
        return facts | self.outcome(result)

    def killed(self, who: str, kill: Any, replicas: int, workers: list[int]) -> dict[str, float]:
        """Let traffic rise, and kill when accelerators have been promised; until the pool is as it should be."""
        self.traffic.rise_or_fall(HIGH)
        self.wait_until(lambda: any(pool.reservations for pool in self.view()))
        unanswered, began = self.traffic.unanswered, time.monotonic()
        kill()
        print(who, "killed", file=sys.stderr)
        self.consistent(replicas, workers)
        return {
            f"{who} killed, consistent after": time.monotonic() - began,
            f"{who} killed, longest silence": self.traffic.longest_silence(began),
            f"{who} killed, unanswered": self.traffic.unanswered - unanswered,
        }

    def consistent(self, replicas: int, workers: list[int]) -> None:
        """Once so many replicas and workers of each run are there, nothing is on its way, and Ray says so too."""
        import ray

        def is_so() -> bool:
            for pool in self.view():
                held = replicas + sum(workers)
                return (
                    not pool.reservations
                    and [app.replicas for app in pool.apps] == [replicas]
                    and [sum(run.workers.values()) for run in pool.runs] == workers
                    and all(run.state in ("running", "parked") for run in pool.runs)
                    and ray.available_resources().get("slot", 0) == ray.cluster_resources()["slot"] - held
                )
            return False

        began = time.monotonic()
        self.wait_until(is_so)
        print(f"{replicas} {workers} after {time.monotonic() - began:.1f} s", file=sys.stderr)

    def view(self) -> list[Any]:
        """The pool as the coordinator sees it."""
        import ray

        pools: list[Any] = ray.get(self.coordinator.view.remote())
        return pools

    def driver(self) -> subprocess.Popen[str]:
        """A process that trains; `step` follows it."""
        command = [sys.executable, __file__, self.address, self.data.uri]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def read() -> None:
            for line in process.stdout or ():
                if line.strip().isdigit():  # Ray says there what it thinks of a lost node
                    self.step = int(line)

        threading.Thread(target=read, daemon=True).start()
        return process

    def controller(self) -> int:
        """The process of Serve's controller."""
        from ray._private import state

        living = state.actors(actor_state_name="ALIVE").values()
        return next(int(actor["Pid"]) for actor in living if actor["Name"] == "SERVE_CONTROLLER_ACTOR")

    def lose_a_node(self) -> None:
        """The one without a replica, on which members leave for some."""
        (pool,) = self.view()
        node = next(node for node in self.nodes if not pool.apps[0].running.get(node.node_id))
        self.cluster.remove_node(node, allow_graceful=False)


def train(folder: Path, address: str, data: str) -> None:
    """Train in this process, from the last checkpoint if there is one."""
    import ray

    from tidepool.data.preprocess import open_prepared
    from tidepool.pool.coordinator import sharing
    from tidepool.train.trainer import fit

    def progress(step: str, done: float, total: float, note: str = "") -> None:
        print(int(done), flush=True)

    ray.init(address=address, log_to_driver=False)
    spec = spec_of("[0, 4]", EPOCHS, folder / "hurry", "train.checkpoint_every_s=1")
    result = fit(spec, open_prepared(data), str(folder / "runs"), progress, sharing(spec))
    (folder / "result").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    home = Path(os.environ["TIDEPOOL_HOME"])
    if len(sys.argv) > 1:
        train(home, *sys.argv[1:])
    else:
        print(json.dumps(Scenario(home).outages()))
