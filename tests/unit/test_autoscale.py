"""What a replica holds, and what Serve's controller is given to tell the pool."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from tidepool.replay.default import RayPolicy
from tidepool.serve.autoscale import PoolPolicy, for_load, policy, replica_options


@pytest.mark.parametrize(
    ("resource", "options"),
    [
        ("CPU", {"num_cpus": 0.25}),
        ("GPU", {"num_cpus": 0.25, "num_gpus": 1}),
        ("slot", {"num_cpus": 0.25, "resources": {"slot": 1}}),
    ],
)
def test_a_replica_holds_one_accelerator_or_its_cpus(resource: str, options: dict[str, object]) -> None:
    assert replica_options(resource, 0.25) == options


def test_the_policy_knows_what_a_replica_takes() -> None:
    assert policy("GPU", 0.25, 1, 50.0)["policy_kwargs"]["per_replica"] == 1
    assert policy("CPU", 0.25, 1, 50.0)["policy_kwargs"]["per_replica"] == 0.25
    assert policy("CPU", 0.25, 1, 50.0)["policy_function"] == "tidepool.serve.autoscale:PoolPolicy"


def test_another_policy_on_the_same_pool_can_be_named() -> None:
    assert policy("GPU", 0.25, 1, 50.0, RayPolicy)["policy_function"] == "tidepool.replay.default:RayPolicy"


def test_queues_decide_until_it_is_known_what_requests_cost_and_the_objective_then() -> None:
    costs = {"one_s": 0.1, "full_s": 0.1, "full": 1.0, "excess_s": 0.0}
    vitals = {"busy": 0.5, "late": 0.1, "arriving": 15.0, **costs}
    context: Any = SimpleNamespace(
        aggregated_metrics={name: {"one": value, "other": value} for name, value in vitals.items()},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        current_num_replicas=2,
        total_num_requests=2.0,
        config=SimpleNamespace(get_target_ongoing_requests=lambda: 2.0),
        policy_state={},
    )
    policy = PoolPolicy("slot", 1.0, slo_p99_ms=1000.0)
    by_queues = policy.decide(context)
    assert by_queues == pytest.approx(1.0 / 0.6)
    assert wait_for_another(by_queues, policy, context) == 4  # 30 requests a second, and a replica can do 10


def wait_for_another(decision: float, policy: PoolPolicy, context: Any) -> float:
    deadline = time.monotonic() + 60
    while (wanted := policy.decide(context)) == decision and time.monotonic() < deadline:
        time.sleep(0.01)
    return wanted


def test_a_moment_of_full_work_calls_for_nobody_and_a_second_of_it_does() -> None:
    policy = PoolPolicy("slot", 1.0)
    loads = [for_load({"busy": [busy] * 3}, 0.9) for busy in (*[0.5] * 5, *[1.0] * 7)]
    wishes = [policy.steadily(load, tick / 5) for tick, load in enumerate(loads)]
    assert loads[5] > 3 > max(wishes[:7])
    assert wishes[-1] > 3


def test_a_late_replica_calls_for_another_however_idle_it_is() -> None:
    assert for_load({"busy": [0.1, 0.1], "late": [0.9, 0.3]}, 0.6) == 3
    assert for_load({"busy": [0.9, 0.9], "late": [0.1, 0.1]}, 0.6) == pytest.approx(3)
    assert for_load({}, 0.6) == 0
