"""Processes are found by their marker, and ended."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tidepool.cluster import processes

Start = Callable[..., "subprocess.Popen[str]"]

FAMILY = """
import os, subprocess, sys
child = subprocess.Popen(["/bin/sleep", "60"], env={}, stdout=subprocess.DEVNULL)  # no marker of its own
print(child.pid, flush=True)
child.wait()
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def mark() -> str:
    return f"test-{secrets.token_hex(6)}-"


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a Python program with a marker and waits for its first line."""
    started = []

    def run(program: str, marker: str) -> subprocess.Popen[str]:
        environment = {**os.environ, processes.MARKER: marker}
        process = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            for member in (*psutil.Process(process.pid).children(recursive=True), process):
                member.kill()
        process.communicate()


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_descendants_belong_even_without_a_marker_and_come_first(start: Start, mark: str) -> None:
    parent = start(FAMILY, mark + "1")
    child = int(first_line(parent))
    assert [process.pid for process in processes.members(mark)] == [child, parent.pid]


def test_only_the_home_s_own_processes_are_ended(start: Start, mark: str) -> None:
    other = start(STUBBORN, "other-" + mark)
    mine = start(FAMILY, mark + "1")
    first_line(other), first_line(mine)
    assert processes.end(mark) == 2
    assert processes.members(mark) == []
    assert other.poll() is None


def test_who_does_not_listen_is_killed(start: Start, mark: str) -> None:
    stubborn = start(STUBBORN, mark + "1")
    first_line(stubborn)
    began = time.monotonic()
    assert processes.end(mark, grace_s=0.2) == 1
    assert time.monotonic() - began < 3
    assert processes.members(mark) == []


def test_a_pid_that_was_given_away_is_not_taken_for_the_cluster(start: Start, mark: str) -> None:
    newcomer = start(STUBBORN, "another")
    first_line(newcomer)
    assert processes.are_alive([newcomer.pid], "another")
    assert not processes.are_alive([newcomer.pid], mark + "1")
    newcomer.kill()
    newcomer.wait()
    assert not processes.are_alive([newcomer.pid], "another")


def test_ending_nothing_is_no_failure(mark: str) -> None:
    assert processes.end(mark) == 0
