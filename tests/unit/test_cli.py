"""What verbs say and refuse when no cluster is there to help them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from tidepool.cli.announce import announce
from tidepool.cli.client import answer_in, curl_line
from tidepool.cli.cluster import ensure_up
from tidepool.cli.jobs import project_of
from tidepool.cli.main import app
from tidepool.cli.output import command, table, waiting
from tidepool.cluster.environment import ELSEWHERE
from tidepool.cluster.ports import Ports
from tidepool.errors import ClusterError, RequestError, SpecError
from tidepool.settings import Settings


@pytest.fixture(autouse=True)
def shell(home: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A shell with an empty home, set to no cluster."""
    for variable in ELSEWHERE:
        monkeypatch.delenv(variable, raising=False)
    return monkeypatch


def types(*words: str) -> Result:
    return CliRunner().invoke(app, words)


def no_cluster() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_a_cluster_for_one_home_is_no_other_homes(shell: pytest.MonkeyPatch) -> None:
    shell.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    shell.setenv("RAY_API_SERVER_ADDRESS", "http://10.0.0.1:8265")
    with pytest.raises(ClusterError, match="a port each"):  # as far as it can come without starting Ray
        ensure_up(Settings(), Ports(8000, 8000))
    assert not {"RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"} & set(os.environ)


def test_a_key_is_printed_and_its_revocation_reported_without_a_cluster() -> None:
    assert types("keys", "create", "alice").stdout.startswith("tp_")
    made = json.loads(types("keys", "create", "bob", "--json").stdout)
    assert made["key"].startswith("tp_")
    (_, bob) = json.loads(types("keys", "list", "--json").stdout)
    assert json.loads(types("keys", "revoke", bob["id"], "--json").stdout) == {"id": bob["id"], "name": "bob"}


def test_no_key_is_made_for_another_cluster(shell: pytest.MonkeyPatch, home: Path) -> None:
    shell.setenv("RAY_ADDRESS", no_cluster())
    for words in (["create", "bob"], ["list"], ["revoke", "x"]):
        refused = types("keys", *words)
        assert isinstance(refused.exception, ClusterError)
        assert "ray exec cluster.yaml" in str(refused.exception)
    assert not (home / "keys.json").exists()


@pytest.mark.parametrize("days", ["-1", "0", "nan", "inf"])
def test_no_key_is_made_that_would_never_be_good(days: str) -> None:
    assert isinstance(types("keys", "create", "bob", "--days", days).exception, SpecError)


def test_a_key_is_made_with_its_models_verbs_and_limit() -> None:
    words = ["--model", "digits", "--verb", "infer", "--verb", "read", "--rate", "60/min", "--quota", "10000/day"]
    made = types("keys", "create", "bob", *words)
    assert "the registry has no model digits; it has no models yet" in made.stderr
    assert "of all replicas" in made.stderr
    (bob,) = json.loads(types("keys", "list", "--json").stdout)
    assert bob["verbs"] == ["infer", "read"]
    assert bob["limit"] == "1/s, 1 at once, 10000/day"
    assert "10000/day" in types("keys", "list").stdout.replace("\n", "")


@pytest.mark.parametrize("words", [["--rate", "fast"], ["--rate", "5/week"], ["--rate", "0"], ["--burst", "3"]])
def test_no_key_is_made_with_a_limit_that_makes_no_sense(words: list[str], home: Path) -> None:
    assert isinstance(types("keys", "create", "bob", *words).exception, SpecError)
    assert not (home / "keys.json").exists()


def test_what_is_done_stands_though_no_cluster_could_be_told(
    shell: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    announce("digits")
    assert "no cluster of this home is running" in capsys.readouterr().err
    shell.setenv("RAY_ADDRESS", no_cluster())
    announce("digits")
    assert "warning: that is done, but no cluster was told: the cluster doesn't answer" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["deploy", "digits"], ["predict", "digits", "/dev/null"]])
def test_verbs_for_the_local_cluster_refuse_to_be_sent_to_another(shell: pytest.MonkeyPatch, words: list[str]) -> None:
    shell.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(ClusterError, match=r"local cluster.*RAY_ADDRESS 10\.0\.0\.1:6379.*unset it"):
        raise types(*words).exception or AssertionError


@pytest.mark.parametrize("key", [None, "tp_mine"])
def test_the_curl_line_comes_through_a_shell_whole(tmp_path: Path, key: str | None) -> None:
    settings = Settings(home=tmp_path / "Jo's home; ls", api_key=key)
    settings.root.mkdir()
    settings.cli_key_file.write_text("tp_cli")
    request = settings.root / "a & b.json"
    line = curl_line("http://localhost:1/v2/models/m/infer", request, settings)
    script = f"curl() {{ printf '%s\\n' \"$@\"; }}; {line}"
    environment = {**os.environ, **({"TIDEPOOL_API_KEY": key} if key else {})}
    said = subprocess.run(["sh", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
    header = f"Authorization: Bearer {key or 'tp_cli'}"
    assert said.splitlines() == ["http://localhost:1/v2/models/m/infer", "-H", header, "-d", f"@{request}"]


@pytest.mark.parametrize("activated", [True, False])
def test_commands_to_type_next_work_in_the_shell_as_it_is(shell: pytest.MonkeyPatch, activated: bool) -> None:
    scripts = str(Path(sys.executable).parent)
    others = [folder for folder in os.environ["PATH"].split(os.pathsep) if folder != scripts]
    shell.setenv("PATH", os.pathsep.join([scripts, *others] if activated else others))
    assert (command() == "tidepool") == activated
    done = subprocess.run(f"{command()} --version", shell=True, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("tidepool ")


def test_what_takes_a_while_is_said_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with waiting("putting digits into service"):
        assert capsys.readouterr().err == "putting digits into service\n"


def test_help_loads_neither_torch_nor_ray() -> None:
    program = (
        "import sys\n"
        "from tidepool.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'pyarrow'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "undeploy" in done.stdout


def test_an_answer_that_is_no_json_is_reported_in_its_own_words() -> None:
    html = "<html><body><h1>503 Service Unavailable</h1>\nNo server is available.\n</body></html>"
    with pytest.raises(RequestError, match=r"status 503: .*503 Service Unavailable.* No server is available"):
        answer_in(httpx.Response(503, text=html))
    with pytest.raises(RequestError, match="status 502: Bad Gateway"):
        answer_in(httpx.Response(502))
    with pytest.raises(RequestError, match="status 404: no such model"):
        answer_in(httpx.Response(404, json={"error": "no such model"}))
    assert answer_in(httpx.Response(200, json={"outputs": []})) == {"outputs": []}


def test_verbs_that_report_take_json() -> None:
    assert json.loads(types("down", "--json").stdout) == {"ended": 0}
    file = Path(__file__).parents[2] / "cluster.yaml"
    validated = json.loads(types("cluster", "validate", str(file), "--json").stdout)
    assert validated["file"] == str(file)
    assert validated["to_fill_in"]
    for verb in ("run", "preprocess", "train", "evaluate", "export", "promote", "rollback", "deploy", "undeploy"):
        assert "--json" in types(verb, "--help").stdout


def test_a_table_in_a_narrow_terminal_breaks_no_word(
    shell: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shell.setenv("COLUMNS", "80")
    row = ["digits", 2, "champion, challenger", "accuracy 0.9725", "19.4 KB", "9c01b8f211ab", "2026-11-22 22:40"]
    headings = ["model", "version", "aliases", "metrics", "size", "digest", "registered"]
    table(headings, [row, ["house-prices", *row[1:]]])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    words = {word for cell in (*headings, *row) for word in str(cell).split()}
    assert words <= set(shown.split())


def test_a_spec_beside_the_project_is_refused_before_anything_is_submitted(
    shell: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "project/jobs").mkdir(parents=True)
    shell.chdir(tmp_path / "project")
    with pytest.raises(SpecError, match="no folder above the spec holds jobs/"):
        project_of(Path("../spec.yaml"))
    assert project_of(Path("spec.yaml")) == tmp_path / "project"
