"""Progress as lines of a job's log."""

from __future__ import annotations

import io

from tidepool.telemetry import progress


def test_a_line_comes_back_as_it_went() -> None:
    out = io.StringIO()
    progress.LineProgress(out)("train", 3, 10, "loss 0.1")
    assert progress.parse(out.getvalue().rstrip("\n")) == ("train", 3, 10, "loss 0.1")


def test_news_comes_ten_times_a_second_at_most_but_the_last_always() -> None:
    out, now = io.StringIO(), [0.0]
    tell = progress.LineProgress(out, clock=lambda: now[0])
    for done in range(1, 101):
        now[0] += 0.01
        tell("train", done, 100)
    seen = [parsed[1] for line in out.getvalue().strip("\n").split("\n") if (parsed := progress.parse(line))]
    assert len(seen) <= 11
    assert seen[-1] == 100


def test_the_same_news_is_told_once() -> None:
    out = io.StringIO()
    tell = progress.LineProgress(out)
    tell("train", 5, 5)
    tell("train", 5, 5)
    assert len(out.getvalue().strip("\n").split("\n")) == 1


def test_any_other_line_is_no_progress() -> None:
    assert progress.parse("hello") is None
    assert progress.parse(progress.MARK + "{") is None
    assert progress.parse(progress.MARK + "[]") is None
