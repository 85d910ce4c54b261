"""Which resource a worker asks for."""

from __future__ import annotations

import pytest

from tidepool.cluster.resources import LEAST_CPUS, accelerator_resource, accelerators, logical_cpus, models
from tidepool.errors import ClusterError

LAPTOP = {"CPU": 8.0, "memory": 1e10, "object_store_memory": 4e9, "node:127.0.0.1": 1.0, "node:__internal_head__": 1.0}
GPUS = {**LAPTOP, "GPU": 4.0, "accelerator_type:A10G": 1.0, "GPU_group_0_ab12": 1.0, "bundle_group_ab12": 1000.0}


@pytest.mark.parametrize(
    ("resources", "best"),
    [
        (LAPTOP, "CPU"),
        (GPUS, "GPU"),
        ({**LAPTOP, "TPU": 8.0, "TPU-v5e-8-head": 1.0}, "TPU"),
        ({**LAPTOP, "NPU": 2.0}, "NPU"),
        ({**LAPTOP, "NPU": 2.0, "GPU": 1.0}, "GPU"),
        ({**LAPTOP, "GPU": 0.0}, "CPU"),
        ({**LAPTOP, "slot": 4.0}, "CPU"),
    ],
)
def test_auto_takes_the_best_accelerator_and_leaves_named_resources_alone(
    resources: dict[str, float], best: str
) -> None:
    assert accelerator_resource("auto", resources) == best


@pytest.mark.parametrize("wanted", ["CPU", "GPU", "slot"])
def test_what_is_there_can_be_asked_for_by_name(wanted: str) -> None:
    assert accelerator_resource(wanted, {**GPUS, "slot": 4.0}) == wanted


def test_what_is_not_there_is_refused_with_a_list_of_what_is() -> None:
    with pytest.raises(ClusterError, match=r"no NPU.*auto, CPU, GPU \(4\), slot \(2\)"):
        accelerator_resource("NPU", {**GPUS, "slot": 2.0})


def test_the_books_of_ray_are_no_accelerators() -> None:
    assert accelerators(GPUS) == {"GPU": 4.0}
    assert accelerators(LAPTOP) == {}


def test_accelerators_are_named_by_model() -> None:
    assert models(GPUS) == ["A10G"]


def test_a_small_machine_claims_enough_cpus_to_train_and_serve_at_once() -> None:
    assert logical_cpus() >= LEAST_CPUS
