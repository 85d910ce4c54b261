"""What a replica holds, and what Serve's controller is given to tell the pool."""

from __future__ import annotations

import pytest

from tidepool.pool import coordinator
from tidepool.serve import autoscale
from tidepool.serve.autoscale import policy, replica_options


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


def test_the_policy_tells_the_pools_own_coordinator() -> None:
    assert (autoscale.COORDINATOR, autoscale.NAMESPACE) == (coordinator.NAME, coordinator.NAMESPACE)
