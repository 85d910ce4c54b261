"""The examination of a machine."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tidepool.cluster import doctor
from tidepool.cluster.ports import Ports
from tidepool.cluster.processes import MARKER
from tidepool.settings import Settings


def by_name(checks: list[doctor.Check]) -> dict[str, doctor.Check]:
    return {check.name: check for check in checks}


@pytest.mark.usefixtures("home")
def test_this_environment_fits(tmp_path: Path) -> None:
    checks = by_name(doctor.examine(Settings(), tmp_path))
    assert {"Python", "ray", "torch", "onnxruntime", "home", "disk", "memory", "ports", "leftovers"} <= set(checks)
    assert all(checks[name].level == "OK" for name in ("Python", *doctor.PACKAGES, "home"))


@pytest.mark.usefixtures("home")
def test_every_finding_has_a_remedy(tmp_path: Path) -> None:
    for check in doctor.examine(Settings(), tmp_path):
        assert bool(check.remedy) == (check.level != "OK")


def test_an_old_python_fails() -> None:
    check = next(doctor.versions((3, 9, 1)))
    assert (check.level, check.seen) == ("FAIL", "3.9.1")
    assert ">=3.11" in check.remedy


def test_a_version_that_was_not_tested_is_named(tmp_path: Path) -> None:
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("ray>=2.60 # fine\npytest==0.1\nno-such-package==1\nwinreg==1; sys_platform == 'win32'\n\n")
    (check,) = doctor.constraints(constraints)
    assert check.level == "WARN"
    assert "pytest" in check.seen
    assert "no-such-package" not in check.seen


def test_without_a_list_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert list(doctor.constraints(tmp_path / "constraints.txt")) == []


def test_a_home_that_can_not_be_made_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.home(Settings(home=tmp_path / "file" / "home")).level == "FAIL"


@pytest.mark.usefixtures("home")
def test_shared_memory_is_looked_at_only_where_there_is_such_a_folder() -> None:
    assert "shared memory" in by_name(list(doctor.space(Settings(), Path("/"))))
    assert "shared memory" not in by_name(list(doctor.space(Settings(), Path("/nowhere"))))


def test_missing_haproxy_is_a_warning() -> None:
    assert doctor.front_end(None).level == "WARN"


@pytest.mark.usefixtures("home")
def test_a_taken_port_is_a_warning() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = Ports(http=server.getsockname()[1])
        check = doctor.ports(Settings(), taken)
    assert check.level == "WARN"
    assert str(taken.http) in check.seen


def test_processes_of_a_dead_cluster_are_named_by_their_home() -> None:
    home = f"/homes/{secrets.token_hex(6)}"
    variables = {MARKER: f"{secrets.token_hex(5)}-1", "TIDEPOOL_HOME": home}
    orphan = subprocess.Popen(
        [sys.executable, "-c", "print('x', flush=True); input()"], env=variables, stdin=-1, stdout=-1
    )
    assert orphan.stdout is not None
    orphan.stdout.readline()
    try:
        check = doctor.leftovers()
        assert check.level == "WARN"
        assert f"TIDEPOOL_HOME={home} tidepool down" in check.remedy
    finally:
        orphan.kill()
        orphan.communicate()
