"""The wordcount job, run as a user runs it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import ray
from pyarrow import parquet

JOB = Path(__file__).parents[2] / "jobs" / "wordcount.py"


def wordcount(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the job on the tests' cluster."""
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, str(JOB), *map(str, arguments)]
    return subprocess.run(command, env=environment, text=True, capture_output=True, check=False)


@pytest.mark.usefixtures("ray_cluster")
def test_counts_are_exact_and_the_most_frequent_word_comes_first(tmp_path: Path) -> None:
    draw = random.Random(1)
    text = " ".join("".join(draw.choices("abcé", k=draw.randint(1, 4))) for _ in range(20_000))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.md").write_text(text[:50_000] + "\n")
    (tmp_path / "in" / "2.csv").write_text("a,b\n" + text[50_000:])
    finished = wordcount(tmp_path / "in", tmp_path / "out" / "words.parquet")
    assert finished.returncode == 0, finished.stderr
    counts = parquet.read_table(tmp_path / "out" / "words.parquet")
    expected = Counter((text[:50_000] + "\na,b\n" + text[50_000:]).split())
    ordered = sorted(expected.items(), key=lambda item: (-item[1], item[0].encode()))
    assert list(zip(counts["word"].to_pylist(), counts["count"].to_pylist(), strict=True)) == ordered
    assert f"{len(expected):,} words in" in finished.stdout


@pytest.mark.usefixtures("ray_cluster")
def test_an_output_right_below_the_root_is_not_taken_for_one_in_this_folder(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a b a")
    finished = wordcount(tmp_path / "in.txt", "/tmp")  # a folder, so that nothing is written wherever it goes
    assert finished.returncode == 5, finished.stdout
    assert "can't write" in finished.stderr


def test_a_missing_input_is_one_line_on_stderr(tmp_path: Path) -> None:
    command = [sys.executable, str(JOB), str(tmp_path / "nowhere"), str(tmp_path / "out.parquet")]
    finished = subprocess.run(command, text=True, capture_output=True, check=False)
    assert finished.returncode == 4
    assert finished.stderr.startswith("error: no such file or folder. Seen: ")
    assert len(finished.stderr.splitlines()) == 1
    assert not (tmp_path / "out.parquet").exists()
