"""Submit a Ray job and follow it: its log as it comes, its progress as bars, its end as an exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import shlex
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidepool.errors import ClusterError, JobFailed
from tidepool.settings import Settings
from tidepool.telemetry import progress

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from rich.console import Console
    from rich.progress import Progress, TaskID

EXCLUDED = ["/.git/", "/.venv/", "**/__pycache__/", "/docs/", "/tests/", "/benchmarks/"]
"""What jobs don't need, so that it needn't travel."""

RESULT = "result: "
"""Begins the line in a job's log that holds its result as JSON."""
EVERY_S = 5.0
"""Between two lines about a step that goes on, where there is no terminal to draw on."""


@dataclass(frozen=True)
class Options:
    """What a job is submitted with beside its folder."""

    num_cpus: int = 0
    """That its driver reserves. With 0 it runs on the head, which on a cluster of many machines should run nothing."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Of driver and workers."""

    def command(self, project: Path, entrypoint: str) -> str:
        """Ray's own command for the same job."""
        words = ["ray", "job", "submit", "--working-dir", "." if project == Path.cwd() else str(project)]
        if self.num_cpus:
            words += ["--entrypoint-num-cpus", str(self.num_cpus)]
        if self.variables:
            words += ["--runtime-env-json", json.dumps({"env_vars": dict(self.variables)})]
        return f"{shlex.join(words)} -- {entrypoint}"


ELSEWHERE = Options(num_cpus=1, variables={"PYTHONPATH": "platform"})
"""On a cluster that isn't this home's: it may not have the package, and the head may have no CPU to give."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job on its way."""

    client: JobSubmissionClient
    id: str


def submit(settings: Settings, project: Path, arguments: list[str], json: bool = False) -> SubmittedJob:
    """Submit `python ARGUMENTS` with `project` as its working directory, and print the native command for it.

    With `json` that goes to stderr.

    Raises:
        NoCluster: no cluster is running.
        ClusterError: the cluster doesn't take the job.
    """
    from ray.job_submission import JobSubmissionClient

    from tidepool.cluster.local import dashboard_address, elsewhere

    entrypoint = "python " + shlex.join(arguments)
    options = ELSEWHERE if elsewhere(settings) else Options()
    print(f"$ {options.command(project, entrypoint)}", file=sys.stderr if json else sys.stdout, flush=True)
    try:
        client = JobSubmissionClient(dashboard_address(settings))
        logging.getLogger("ray").setLevel(logging.ERROR)  # the client has just set it to INFO
        id = client.submit_job(
            entrypoint=entrypoint,
            runtime_env={"working_dir": str(project), "excludes": EXCLUDED, "env_vars": dict(options.variables)},
            entrypoint_num_cpus=options.num_cpus,
        )
        return SubmittedJob(client, id)
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError("the cluster doesn't take the job", seen=error, remedy="`tidepool doctor`") from error


def follow(job: SubmittedJob, json: bool = False, clock: Callable[[], float] = time.monotonic) -> Any:
    """Show the job's log and progress until it ends; returns its result, JSON-ready, or None if it told none.

    With `json` the log goes to stderr, so that stdout is the result's alone. Progress is bars on a terminal, elsewhere
    lines, each at once: a step's first and last, and one every `EVERY_S` between.

    Raises:
        JobError: it failed or was stopped, with its own last error.
        ClusterError: the cluster went away meanwhile.
        SystemExit: with 130 if the user interrupts, who is told that the job goes on.
    """
    import aiohttp
    from rich.console import Console

    console = Console(stderr=json)
    with _bars(console) if console.is_terminal else contextlib.nullcontext() as bars:
        log = _Log(console, bars, clock)
        try:
            asyncio.run(_show(job, log))
            details = job.client.get_job_info(job.id)
        except KeyboardInterrupt:
            elsewhere = f" --address {job.client.get_address()}"
            print(
                f"\njob {job.id} goes on\n  follow it: ray job logs --follow {job.id}{elsewhere}\n"
                f"  stop it:   ray job stop {job.id}{elsewhere}",
                file=sys.stderr,
            )
            raise SystemExit(130) from None
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise ClusterError(
                f"the cluster doesn't answer any more; job {job.id} may go on",
                seen=error,
                remedy=f"`tidepool status`, then `ray job logs --follow {job.id}`",
            ) from error
    if details.status == "SUCCEEDED":
        return log.result
    cause = log.error or details.message or "no message"
    elsewhere = f" --address {job.client.get_address()}"
    failure = JobFailed(f"{cause} Job {job.id} ended as {details.status}; its log: ray job logs {job.id}{elsewhere}")
    failure.exit_code = details.driver_exit_code
    raise failure


async def _show(job: SubmittedJob, log: _Log) -> None:
    rest = ""
    async for chunk in job.client.tail_job_logs(job.id):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            log.show(line)
    log.show(rest)


class _Log:
    """A job's log on the screen: progress as bars, the rest as it is; its last error and its result are kept."""

    def __init__(self, console: Console, bars: Progress | None, clock: Callable[[], float]) -> None:
        self._console, self._bars, self._clock = console, bars, clock
        self._tasks: dict[str, TaskID] = {}
        self._told: dict[str, float] = {}
        """When there was a line about a step, where there are no bars; infinity once it is over."""
        self.error: str | None = None
        self.result: Any = None

    def show(self, line: str) -> None:
        if news := progress.parse(line):
            if self._bars is None:
                self._tell(*news)
            else:
                self._draw(self._bars, *news)
        elif line.startswith("error: "):
            self.error = line.removeprefix("error: ")
        elif line.startswith(RESULT):
            with contextlib.suppress(ValueError):
                self.result = json.loads(line.removeprefix(RESULT))
        elif line.strip() and not _is_noise(line):
            self._print(line)

    def _draw(self, bars: Progress, step: str, done: float, total: float, note: str) -> None:
        if step not in self._tasks:
            self._tasks[step] = bars.add_task(step, total=total, note=note)
        bars.update(self._tasks[step], completed=done, total=total, note=note)

    def _tell(self, step: str, done: float, total: float, note: str) -> None:
        now, told = self._clock(), self._told.get(step, -math.inf)
        was_over, is_over = told == math.inf, done >= total
        if was_over != is_over or (not is_over and now - told >= EVERY_S):
            self._told[step] = math.inf if is_over else now
            self._print(f"{step:<10} {done / total if total else 1:>4.0%}  {note}".rstrip())

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _is_noise(line: str) -> bool:
    """Whether a line is Ray's own chatter."""
    return "\tINFO " in line or "(raylet)" in line or line.startswith("Running entrypoint for job")


def _bars(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description:<10}", table_column=Column(no_wrap=True, min_width=10)),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
        console=console,
    )
