"""A job as the command line follows it: its log, its result, and a cluster that goes away."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from ray.dashboard.modules.job.cli import submit as submit_command

from tidepool.checkpoint import Checkpoint
from tidepool.cli.follow import ELSEWHERE, Options, SubmittedJob, follow
from tidepool.cli.job import as_document
from tidepool.errors import ClusterError, JobError
from tidepool.telemetry.progress import MARK


class Client:
    """Stands for Ray's: a log in chunks, then an end."""

    def __init__(self, *chunks: str, status: str = "SUCCEEDED", failure: BaseException | None = None) -> None:
        self._chunks, self._status, self._failure = chunks, status, failure

    async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
        for chunk in self._chunks:
            yield chunk
        if self._failure:
            raise self._failure

    def get_address(self) -> str:
        return "http://dashboard"

    def get_job_info(self, id: str) -> Any:
        return SimpleNamespace(status=self._status, message="it said nothing", driver_exit_code=4)


def job(*chunks: str, **end: Any) -> SubmittedJob:
    return SubmittedJob(Client(*chunks, **end), "raysubmit_1")  # type: ignore[arg-type]


def test_the_result_is_what_the_job_printed_last(capsys: pytest.CaptureFixture[str]) -> None:
    followed = job('result: one word of many\nhello\nresult: {"accu', 'racy": 0.5}\n')
    assert follow(followed) == {"accuracy": 0.5}
    assert capsys.readouterr().out.strip() == "hello"


def test_whoever_interrupts_is_told_how_to_follow_or_stop_the_job(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        follow(job("hello\n", failure=KeyboardInterrupt()))
    assert left.value.code == 130
    said = capsys.readouterr().err
    assert "job raysubmit_1 goes on" in said
    assert "ray job logs --follow raysubmit_1 --address http://dashboard" in said
    assert "ray job stop raysubmit_1 --address http://dashboard" in said


def test_with_json_nothing_but_the_result_is_left_for_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(job("hello\nresult: {}\n"), json=True) == {}
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "hello" in shown.err


def test_without_a_terminal_progress_comes_line_by_line_as_it_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    shown: list[str] = []
    now = [0.0]

    class Slow(Client):
        async def tail_job_logs(self, id: str) -> AsyncIterator[str]:
            for done in range(5):
                now[0] = 2.0 * done
                yield f'{MARK}{{"step": "train", "done": {done}, "total": 4, "note": "loss {done}"}}\n'
                shown.append(capsys.readouterr().out)

    follow(SubmittedJob(Slow(), "raysubmit_1"), clock=lambda: now[0])  # type: ignore[arg-type]
    assert shown == ["train        0%  loss 0\n", "", "", "train       75%  loss 3\n", "train      100%  loss 4\n"]
    assert capsys.readouterr().out == ""


def test_the_end_of_a_step_is_told_once_and_a_step_that_begins_again_is_told_of(
    capsys: pytest.CaptureFixture[str],
) -> None:
    news = [(4, "loss 1"), (4, "saved"), (0, "again"), (4, "loss 2"), ("null", "rubbish")]
    lines = [f'{MARK}{{"step": "train", "done": {done}, "total": 4, "note": "{note}"}}\n' for done, note in news]
    follow(job(*lines), clock=lambda: 0.0)
    told = capsys.readouterr().out.splitlines()
    assert told[:3] == ["train      100%  loss 1", "train        0%  again", "train      100%  loss 2"]


def test_a_job_that_fails_says_its_last_error_and_has_its_exit_code() -> None:
    with pytest.raises(JobError, match="no such file") as caught:
        follow(job("error: no such file\n", status="FAILED"))
    assert getattr(caught.value, "exit_code", None) == 4
    with pytest.raises(JobError, match="it said nothing"):
        follow(job(status="STOPPED"))


@pytest.mark.parametrize("failure", [aiohttp.ClientError("gone"), ConnectionError("gone"), RuntimeError("gone")])
def test_a_cluster_that_goes_away_is_one_message(failure: Exception) -> None:
    with pytest.raises(ClusterError, match=r"raysubmit_1 may go on.*gone.*ray job logs --follow raysubmit_1"):
        follow(job("hello\n", failure=failure))


@pytest.mark.parametrize("options", [Options(), ELSEWHERE])
def test_the_command_that_is_printed_submits_the_same_job(options: Options) -> None:
    words = shlex.split(options.command(Path("/a project"), "python jobs/run.py 'my spec.yaml'"))
    understood = submit_command.make_context("submit", words[3:]).params
    assert understood["working_dir"] == "/a project"
    assert understood["entrypoint"] == ("python", "jobs/run.py", "my spec.yaml")
    assert (understood["entrypoint_num_cpus"] or 0) == options.num_cpus
    assert json.loads(understood["runtime_env_json"] or "{}").get("env_vars", {}) == options.variables


def test_a_driver_reserves_a_cpu_where_the_head_may_have_none() -> None:
    assert (Options().num_cpus, ELSEWHERE.num_cpus) == (0, 1)


def test_what_a_step_returns_becomes_a_document() -> None:
    assert as_document({"accuracy": 0.5}) == {"accuracy": 0.5}
    assert as_document(Checkpoint("/x", 3, "d")) == {"uri": "/x", "step": 3, "digest": "d"}
