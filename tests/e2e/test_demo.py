"""What a newcomer does, through the command line alone: the demonstration, twice, and what it prints to try next."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tidepool.cluster.environment import ELSEWHERE

PROJECT = Path(__file__).parents[2]
TIDEPOOL = str(Path(sys.executable).with_name("tidepool"))

pytestmark = pytest.mark.timeout(600)


class Newcomer:
    """Types commands in a checkout, with an empty TIDEPOOL_HOME."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = [_free_port(), _free_port()]
        self._environment = {**os.environ, "TIDEPOOL_HOME": str(home), "COLUMNS": "120"}
        for variable in ELSEWHERE:
            self._environment.pop(variable, None)

    def types(self, *words: str, exit_code: int = 0, input: str | None = None) -> str:
        """Run `tidepool WORDS`; its output, which must come with this exit code."""
        done = subprocess.run(
            [TIDEPOOL, *words], cwd=PROJECT, env=self._environment, capture_output=True, text=True, input=input
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def runs(self, line: str) -> str:
        """Run a line of shell in the checkout; its standard output, which must come with exit code 0."""
        done = subprocess.run(line, shell=True, cwd=PROJECT, env=self._environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def waits_for(self, word: str, line: str, deadline_s: float = 120.0) -> None:
        """Run the line until its output has the word."""
        until = time.monotonic() + deadline_s
        while word not in (seen := self.runs(line)):
            assert time.monotonic() < until, seen
            time.sleep(0.5)

    def demo(self) -> str:
        """The demonstration, on ports of its own."""
        return self.types("demo", "--http-port", str(self.ports[0]), "--dashboard-port", str(self.ports[1]))

    def version_that_answers(self) -> str:
        """The `model_version` of an answer."""
        request = str(self.home / "digits-request.json")
        answer = self.types("predict", "digits", request)
        return str(json.loads(answer[: answer.rindex("}") + 1])["model_version"])

    def models(self) -> list[dict[str, Any]]:
        """What `tidepool models --json` says."""
        listed: list[dict[str, Any]] = json.loads(self.types("models", "--json"))
        return listed

    def processes(self) -> list[psutil.Process]:
        """Processes that carry this home's cluster in their environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TIDEPOOL_HOME") == str(self.home) and process.pid != os.getpid():
                    found.append(process)
            except (psutil.AccessDenied, psutil.NoSuchProcess):
                continue
        return found


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    person = Newcomer(tmp_path_factory.mktemp("newcomer"))
    yield person
    person.types("down")
    assert person.processes() == []
    for port in person.ports:
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still listens"


@pytest.fixture(scope="module")
def first_demo(newcomer: Newcomer) -> str:
    return newcomer.demo()


def test_before_anything_runs_the_commands_say_so(tmp_path: Path) -> None:
    person = Newcomer(tmp_path)
    assert "tidepool up" in person.types("predict", "digits", input="{}", exit_code=3)
    assert "tidepool up" in person.types("run", "deployments/digits/spec.yaml", exit_code=3)


def test_the_demonstration_ends_with_a_good_model_in_service(newcomer: Newcomer, first_demo: str) -> None:
    accuracy = re.search(r"accuracy\s+([0-9.]+)", first_demo)
    assert accuracy
    assert float(accuracy[1]) >= 0.95
    assert first_demo.count("answer ") == 10
    assert "ray job submit --working-dir . -- python jobs/run.py deployments/digits/spec.yaml" in first_demo
    assert newcomer.version_that_answers()


def test_the_demonstration_says_what_it_waits_for(first_demo: str) -> None:
    said = ("starting Ray", "starting the HTTP front end", "putting digits into service")
    assert [line for line in first_demo.splitlines() if line in said] == list(said)


def test_what_the_demonstration_prints_to_type_next_works(newcomer: Newcomer, first_demo: str) -> None:
    (curl,) = re.findall(r"^  (curl .+)$", first_demo, re.MULTILINE)
    assert json.loads(newcomer.runs(curl))["model_name"] == "digits"
    (models,) = re.findall(r"^  (\S*tidepool models\b)", first_demo, re.MULTILINE)
    assert "digits" in newcomer.runs(models)


def test_rays_own_command_puts_the_model_into_service(newcomer: Newcomer, first_demo: str) -> None:
    exports = "; ".join(re.findall(r"^  (export RAY_.+)$", newcomer.types("up"), re.MULTILINE))
    newcomer.types("undeploy", "digits")
    serve = shlex.quote(str(Path(sys.executable).with_name("serve")))
    newcomer.runs(f"{exports}; {serve} deploy deployments/digits/serve.yaml")
    newcomer.waits_for("status: RUNNING", f"{exports}; {serve} status --name digits")
    assert newcomer.version_that_answers()


def test_the_second_demonstration_registers_version_2_and_versions_move(newcomer: Newcomer, first_demo: str) -> None:
    second = newcomer.demo()
    assert "reused" in second
    (model,) = newcomer.models()
    assert [version["version"] for version in model["versions"]] == [2, 1]
    assert model["aliases"] == {"champion": 2}
    assert all(version["metrics"]["accuracy"] >= 0.95 for version in model["versions"])
    assert newcomer.version_that_answers() == "2"
    newcomer.types("promote", "digits", "1")
    assert newcomer.version_that_answers() == "1"
    newcomer.types("rollback", "digits")
    assert newcomer.version_that_answers() == "2"
    newcomer.types("rollback", "digits")
    assert newcomer.version_that_answers() == "1"
    assert "named no other version" in newcomer.types("rollback", "digits", exit_code=8)
    said = newcomer.types("export", "deployments/digits/spec.yaml", "--set", "evaluate.promote=false")
    assert "registered digits version 3 as challenger" in said
    assert "tidepool canary digits 3 --percent 10" in said
    assert newcomer.models()[0]["aliases"] == {"champion": 1, "challenger": 3}
    assert newcomer.version_that_answers() == "1"


@pytest.mark.parametrize(
    ("words", "exit_code", "message"),
    [
        (["run", "nowhere.yaml"], 2, "no such spec file"),
        (["run", "deployments/digits/spec.yaml", "--set", "train.epoch=3"], 2, "did you mean epochs"),
        (["promote", "digits", "99"], 8, "99"),
        (["models", "iris"], 8, "iris"),
        (["deploy", "iris"], 8, "iris"),
        (["undeploy", "iris"], 8, "iris"),
        (["predict", "iris", "/dev/null"], 9, "iris"),
        (["predict", "digits", "/dev/null"], 9, "not JSON"),
        (["preprocess", "deployments/digits/spec.yaml", "--set", "data.source=/nowhere.csv"], 4, "/nowhere.csv"),
    ],
)
def test_bad_input_is_refused_and_the_service_goes_on(
    newcomer: Newcomer, first_demo: str, words: list[str], exit_code: int, message: str
) -> None:
    assert message in newcomer.types(*words, exit_code=exit_code)
    assert newcomer.version_that_answers()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
