"""Submit a Ray job and follow it: its log as it comes, its progress as bars, its end as an exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidepool.errors import ClusterError, JobError
from tidepool.settings import Settings
from tidepool.telemetry import progress

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient
    from rich.progress import Progress, TaskID

EXCLUDED = ["/.git/", "/.venv/", "**/__pycache__/", "/docs/", "/tests/", "/benchmarks/"]
"""What jobs don't need, so that it needn't travel."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job on its way."""

    client: JobSubmissionClient
    id: str


class JobFailed(JobError):
    """A job ended without success; carries the exit code of its driver."""

    exit_code: int | None = None
    """As the driver ended: the job's failure is told apart by the same codes as a local one."""


def submit(settings: Settings, project: Path, arguments: list[str]) -> SubmittedJob:
    """Submit `python ARGUMENTS` with `project` as its working directory, and print the native command for it.

    Raises:
        NoCluster: no cluster is running.
        ClusterError: the cluster doesn't take the job.
    """
    from ray.job_submission import JobSubmissionClient

    from tidepool.cluster.local import dashboard_address

    entrypoint = "python " + shlex.join(arguments)
    print(f"$ ray job submit --working-dir {_shown(project)} -- {entrypoint}")
    environment: dict[str, object] = {"working_dir": str(project), "excludes": EXCLUDED}
    if os.environ.get("RAY_ADDRESS"):
        environment["env_vars"] = {"PYTHONPATH": "platform"}  # a remote cluster may not have the package
    try:
        client = JobSubmissionClient(dashboard_address(settings))
        logging.getLogger("ray").setLevel(logging.ERROR)  # the client has just set it to INFO
        return SubmittedJob(client, client.submit_job(entrypoint=entrypoint, runtime_env=environment))
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError("the cluster doesn't take the job", seen=error, remedy="`tidepool doctor`") from error


def follow(job: SubmittedJob) -> None:
    """Show the job's log and progress until it ends.

    Raises:
        JobError: it failed or was stopped, with its own last error.
    """
    errors: list[str] = []
    with _bars() as bars:
        asyncio.run(_show(job, bars, errors))
    details = job.client.get_job_info(job.id)
    if details.status == "SUCCEEDED":
        return
    failure = JobFailed(
        f"job {job.id} ended as {details.status}",
        seen=(errors[-1] if errors else details.message or "no message").removeprefix("error: "),
        remedy=f"see the whole log: ray job logs {job.id}",
    )
    failure.exit_code = details.driver_exit_code
    raise failure


async def _show(job: SubmittedJob, bars: Progress, errors: list[str]) -> None:
    tasks: dict[str, TaskID] = {}
    rest = ""
    async for chunk in job.client.tail_job_logs(job.id):
        *lines, rest = (rest + chunk).split("\n")
        for line in lines:
            _show_line(line, bars, tasks, errors)
    _show_line(rest, bars, tasks, errors)


def _show_line(line: str, bars: Progress, tasks: dict[str, TaskID], errors: list[str]) -> None:
    news = progress.parse(line)
    if news is None:
        if line.startswith("error: "):
            errors.append(line)
        elif line.strip() and not _is_noise(line):
            bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        return
    step, done, total, note = news
    if step not in tasks:
        tasks[step] = bars.add_task(step, total=total, note=note)
    bars.update(tasks[step], completed=done, total=total, note=note)


def _is_noise(line: str) -> bool:
    """Whether a line is Ray's own chatter."""
    return "\tINFO " in line or "(raylet)" in line or line.startswith("Running entrypoint for job")


def _bars() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Column

    return Progress(
        TextColumn("{task.description:<10}", table_column=Column(no_wrap=True, min_width=10)),
        BarColumn(bar_width=16),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
    )


def _shown(project: Path) -> str:
    return "." if project == Path.cwd() else str(project)
