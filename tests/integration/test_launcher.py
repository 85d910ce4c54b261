"""A cluster.yaml is refused, with the line, before it costs money or opens a door."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tidepool.cluster.launcher import placeholders, problems, validate
from tidepool.errors import ClusterError
from tidepool.pool.coordinator import policy_of
from tidepool.pool.machines import BOUGHT, LABEL
from tidepool.settings import Settings

OURS = Path(__file__).parents[2] / "cluster.yaml"

WORLD = """  security_group:
    GroupName: mine
    IpPermissions:
      - {FromPort: 22, ToPort: 22, IpProtocol: tcp, IpRanges: [{CidrIp: 203.0.113.0/24}]}
      - FromPort: 8000
        ToPort: 8000
        IpProtocol: tcp
        IpRanges: [{CidrIp: 0.0.0.0/0}]
"""


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of cluster.yaml with `old` replaced by `new`, once."""

    def change(old: str, new: str, source: Path = OURS) -> Path:
        text = source.read_text()
        assert old in text
        path = tmp_path / "cluster.yaml"
        path.write_text(text.replace(old, new, 1))
        return path

    return change


def line_of(path: Path, text: str) -> int:
    return 1 + next(number for number, line in enumerate(path.read_text().splitlines()) if text in line)


def test_our_own_file_passes() -> None:
    validate(OURS)


def test_our_own_file_runs_no_work_on_the_head_and_has_spot_gpus() -> None:
    import yaml

    types = yaml.safe_load(OURS.read_text())["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["gpu_spot"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu_spot"]["min_workers"] == 0


def test_a_machine_that_is_lost_is_noticed_within_15_s() -> None:
    """Five misses in a row, each after a period and at worst a timeout."""
    import yaml

    command = yaml.safe_load(OURS.read_text())["head_start_ray_commands"][-1]
    (option,) = [word for word in shlex.split(command) if word.startswith("--system-config=")]
    beat = json.loads(option.partition("=")[2])
    assert 5 * (beat["health_check_period_ms"] + beat["health_check_timeout_ms"]) <= 15_000


def test_what_the_pool_may_buy_is_a_machine_of_our_own_file() -> None:
    import yaml

    file = yaml.safe_load(OURS.read_text())
    (kind,) = [kind for kind in file["available_node_types"].values() if kind["labels"].get(LABEL) == BOUGHT]
    (pool,) = re.findall(r"TIDEPOOL_POOL='(.*?)' tidepool cluster equip", file["head_start_ray_commands"][-1])
    machines = policy_of(Settings(pool=pool)).machines
    assert (kind["min_workers"], kind["max_workers"]) == (0, machines.at_most)
    assert kind["resources"]["GPU"] == machines.accelerators


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("cluster_name: tidepool", "cluster_nam: tidepool", "cluster_nam:", "unknown key cluster_nam"),
        ("    idle_timeout_s: 600", "    idle_timeout: 600", "idle_timeout: 600", "unknown key idle_timeout"),
        ("  region:", "  regoin: x\n  region:", "regoin", "unknown key regoin"),
        ("min_workers: 1", "min_workers: 11", "max_workers: 10", "add up to more than max_workers.*11 > 10"),
        ("min_workers: 0\n    max_workers: 4", "min_workers: 5\n    max_workers: 4", "min_workers: 5", "gpu_spot has"),
        ("{CPU: 0}", "{CPU: 4}", "{CPU: 4}", "head would run work.*CPU: 4"),
        ("{CPU: 0}", "{}", "resources: {}", "head would run work.*all its CPUs"),
        ("head_node_type: head", "head_node_type: haed", "haed", "no such node type.*haed"),
        ("\nsetup_commands: []", "", "cluster_name", "setup_commands is missing"),
        ("\nsetup_commands: []", "\nsetup_commands: [pip install x/ray-wheels/y]", "ray-wheels", "nightly Ray"),
        ("provider:\n", "provider:\n" + WORLD, "0.0.0.0/0", "open to the world.*8000 from 0.0.0.0/0"),
        (
            "      SecurityGroupIds: [sg-REPLACE]   # yours",
            "      # yours",
            "node_config:",
            "head has no security group",
        ),
        ("      ImageId: ami-REPLACE ", "      # ", "node_config:", "head has no ImageId"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=off", "  - >-", "without token authentication"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "  - >-", "dashboard would listen"),
        ("tidepool:0.1.0-py311\n", "tidepool:latest\n", "tidepool:latest", "image without a version"),
        ("  image: REPLACE-REGISTRY/tidepool:0.1.0-py311\n", "", "docker:", "nothing brings tidepool"),
        ("max_workers: 10", "max_workers: ten", "max_workers: ten", "max_workers is not valid"),
        (
            "    node_config:\n      InstanceType: g5",
            "    nodes:\n      Instance: g5",
            "    nodes:",
            "unknown key nodes",
        ),
        ("{CPU: 8}", "{CPU: 0.5}", "{CPU: 0.5}", "resources.CPU is not valid"),
        ("min_workers: 1", "min_workers: 1\n    min_workers: 2", "min_workers: 2", "min_workers stands twice"),
    ],
)
def test_a_mistake_is_refused_with_its_line(
    changed: Callable[..., Path], old: str, new: str, line: str, message: str
) -> None:
    path = changed(old, new)
    with pytest.raises(ClusterError, match=f"^{path}:[0-9]+: .*Remedy: "):
        validate(path)
    found = [problem for problem in problems(path) if re.search(message, f"{problem.what} {problem.seen}")]
    assert [problem.line for problem in found] == [line_of(path, line)]


def test_every_problem_is_found_in_the_order_of_the_lines(changed: Callable[..., Path]) -> None:
    path = changed("{CPU: 0}", "{CPU: 4}", source=changed("RAY_AUTH_MODE=token", "X=y"))
    found = problems(path)
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)
    assert len(found) == 2
    with pytest.raises(ClusterError, match=r"and 1 more"):
        validate(path)


def test_a_file_without_node_types_does_not_get_rays_default_machines(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("cluster_name: x\nprovider: {type: aws, region: eu-west-1}\n")
    found = " ".join(problem.what for problem in problems(path))
    for key in ("max_workers", "available_node_types", "head_node_type", "setup_commands", "worker_start_ray_commands"):
        assert key in found


def test_machines_that_stand_there_already_need_no_node_types(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        """cluster_name: x
provider: {type: local, head_ip: 10.0.0.1, worker_ips: [10.0.0.2]}
auth: {ssh_user: ray}
setup_commands: [pip install ./tidepool]
head_setup_commands: []
head_start_ray_commands: [export RAY_AUTH_MODE=token; ray start --head --num-cpus=0]
worker_start_ray_commands: ["export RAY_AUTH_MODE=token; ray start --address=$RAY_HEAD_IP:6379"]
"""
    )
    validate(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2\n", "cluster.yaml:2 is not YAML"),
        ("- 1\n", "not a mapping"),
        ("{}", "setup_commands is missing.*and [0-9] more"),
    ],
)
def test_what_is_no_cluster_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError, match=message):
        validate(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="No such file"):
        validate(tmp_path / "cluster.yaml")


def test_what_is_to_be_filled_in_is_listed() -> None:
    numbers = [number for number, _ in placeholders(OURS)]
    assert line_of(OURS, "REPLACE-BUCKET") in numbers
    assert 1 not in numbers
