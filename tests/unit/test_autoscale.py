"""What a replica holds, and what Serve's controller is given to tell the pool."""

from __future__ import annotations

import pytest

from tidepool.replay.default import RayPolicy
from tidepool.serve.autoscale import for_load, policy, replica_options


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


def test_a_late_replica_calls_for_another_however_idle_it_is() -> None:
    assert for_load({"busy": [0.1, 0.1], "late": [0.9, 0.3]}, 0.6) == 3
    assert for_load({"busy": [0.9, 0.9], "late": [0.1, 0.1]}, 0.6) == pytest.approx(3)
    assert for_load({}, 0.6) == 0
