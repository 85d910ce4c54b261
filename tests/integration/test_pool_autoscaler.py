"""A machine is bought and returned by Ray's own cluster autoscaler, whose machines are further Rays on this one.

The scenario runs in a process of its own, on a cluster of its own, and prints what it measured; the tests judge that.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from waves import run_as_script

FAKES = "ray.autoscaler._private.fake_multi_node.node_provider"
NEEDLESS = {
    **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
    **{f"{who}_start_ray_commands": [] for who in ("head", "worker")},
    **{key: [] for key in ("initialization_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")},
    **{key: {} for key in ("file_mounts", "auth", "docker")},
    "file_mounts_sync_continuously": False,
}
"""What Ray wants to have said all the same."""


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_as_script(__file__, tmp_path_factory.mktemp("pool"))


def test_demand_beyond_the_pool_brings_a_machine(measured: dict[str, Any]) -> None:
    assert measured["at the wave"] == [False, True]


def test_it_goes_after_the_wave_and_the_pools_own_stays(measured: dict[str, Any]) -> None:
    assert measured["at the ebb"] == [False]


def test_the_ledger_says_when_it_came_and_went(measured: dict[str, Any]) -> None:
    assert measured["ledger"] == [["buy", "done"], ["return", "done"]]


# What follows runs in the scenario's process.


def cluster_file(port: int, head: str) -> dict[str, Any]:
    """A head with four accelerators, and machines with as many more that may be bought."""
    own = {"resources": {"CPU": 2, "slot": 4}, "node_config": {}, "max_workers": 0}
    bought = {"resources": {"CPU": 1, "slot": 4}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    return {
        "cluster_name": "test",
        "max_workers": 2,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",
            "module": f"{FAKES}.FakeMultiNodeProvider",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": head,
            "launch_multiple": True,
        },
        "available_node_types": {
            "ray.head.default": own,
            "machine": {**bought, "labels": {"tidepool/pool": "bought"}},
        },
        "head_node_type": "ray.head.default",
        **NEEDLESS,
    }


def start(folder: Path, mark: str) -> str:
    """The address of the head."""
    from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = folder / "cluster.json"
    file.write_text(json.dumps(cluster_file(port, FAKE_HEAD_NODE_ID)))
    fakes = {"RAY_FAKE_CLUSTER": "1", "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}
    fakes |= {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_enable_autoscaler_v2": "1"}
    options = [f"--port={port}", "--node-ip-address=127.0.0.1", f"--autoscaling-config={file}"]
    options += [
        "--num-cpus=2",
        '--resources={"slot": 4}',
        "--include-dashboard=false",
        "--dashboard-agent-listen-port=0",
    ]
    subprocess.run(
        [Path(sys.executable).with_name("ray"), "start", "--head", *options],
        env={**os.environ, **fakes, "AUTOSCALER_UPDATE_INTERVAL_S": "1", "TIDEPOOL_CLUSTER": mark},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return f"127.0.0.1:{port}"


def wait_until(done: Callable[[list[bool]], bool], handle: Any, wanted: int) -> list[bool]:
    """Whether each machine of the pool is a bought one, once that is as it should be."""
    import ray

    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ray.get(handle.want.remote("slot", name="app", wanted=wanted))
        bought = [node.bought for pool in ray.get(handle.view.remote()) for node in pool.nodes]
        if done(sorted(bought)):
            break
        time.sleep(0.25)
    return sorted(bought)


def scenario(address: str) -> dict[str, Any]:
    """Six accelerators are wanted where there are four; then none."""
    import ray

    from tidepool.pool import coordinator, ledger
    from tidepool.pool.policy import MachinesSpec, PolicySpec
    from tidepool.settings import Settings

    ray.init(address, log_to_driver=False)
    machines = MachinesSpec(at_most=1, accelerators=4, return_after_s=1)
    handle = coordinator.start(Settings(), PolicySpec(machines=machines))
    wave = wait_until(lambda bought: bought == [False, True], handle, 6)
    ebb = wait_until(lambda bought: bought == [False], handle, 0)
    entries = ledger.read(coordinator.ledger_path(Settings()))
    moves = [[entry.kind, entry.phase] for entry in entries if entry.kind in ("buy", "return")]
    return {"at the wave": wave, "at the ebb": ebb, "ledger": moves}


if __name__ == "__main__":
    from tidepool.cluster import processes

    home = Path(os.environ["TIDEPOOL_HOME"])
    mark = f"test-{home.name}-{os.getpid()}"
    try:
        print(json.dumps(scenario(start(home, mark))))
    finally:
        processes.end(mark)
