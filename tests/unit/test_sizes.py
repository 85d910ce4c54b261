"""Sizes on the screen."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tidepool.telemetry.sizes import shown

PACKAGE = Path(__file__).parents[2] / "platform/tidepool"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0.0 KB"), (65_946, "65.9 KB"), (999_999, "1.0 MB"), (5e9, "5.0 GB"), (12e15, "12000.0 TB")],
)
def test_a_size_is_shown_in_the_unit_that_fits(size: float, text: str) -> None:
    assert shown(size) == text


def test_what_verbs_and_jobs_print_has_its_sizes_from_one_place() -> None:
    own_way = re.compile(r"\} ?(?:[kKMGT]i?B|bytes)\b")
    files = [file for folder in ("cli", "cluster", "export", "telemetry") for file in (PACKAGE / folder).rglob("*.py")]
    wrong = [str(file) for file in [*files, PACKAGE / "pipeline.py"] if own_way.search(file.read_text())]
    assert not wrong
