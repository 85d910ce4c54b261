"""A replay's requests and its figures; a whole replay takes minutes: `tidepool pool replay`."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path

import numpy as np
import pytest

from tidepool.errors import DataError
from tidepool.pool.sight import Sight
from tidepool.pool.tide import to_svg
from tidepool.replay.regimes import HEADINGS, Outcome, regimes, rows
from tidepool.replay.stage import holdings
from tidepool.replay.stand_ins import SlowAnswer
from tidepool.replay.traffic import due_times, send, until_new_answers, waves


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """An hour with a request every second, and ten a second in its last ten minutes."""
    seconds = [*range(3000), *(3000 + tenth / 10 for tenth in range(6000))]
    stamps = [f"2024-01-01 {int(s) // 3600:02}:{int(s) // 60 % 60:02}:{s % 60:09.6f}" for s in seconds]
    path = tmp_path / "trace.csv"
    path.write_text("TIMESTAMP,ContextTokens\n" + "\n".join(f"{stamp},1" for stamp in stamps))
    return path


def test_a_trace_is_compressed_and_thinned_to_its_peak(trace: Path) -> None:
    due = due_times(trace, seconds=60, compress=60, peak=28)
    early, late = np.histogram(due, [0, 50, 60])[0]
    assert 240 < late <= 300
    assert 90 < early < 210
    assert all(due[:-1] <= due[1:])


def test_a_generated_shape_peaks_where_it_is_wanted() -> None:
    due = due_times(None, seconds=60, compress=60, peak=28)
    assert due[-1] < 60
    assert 20 < (np.histogram(due, 12, (0, 60))[0] / 5).max() < 36


def test_a_trace_that_is_too_thin_is_refused(trace: Path) -> None:
    with pytest.raises(DataError, match="raise --compress"):
        due_times(trace, seconds=60, compress=1, peak=28)


def test_waves_come_in_the_second_half_of_each_period() -> None:
    due = waves(seconds=60, period_s=20, peak=28)
    calm, high = np.histogram(due % 20, (0, 10, 20))[0]
    assert 28 * 30 * 0.8 < high < 28 * 30 * 1.2
    assert high * 0.05 < calm < high * 0.2


@pytest.mark.parametrize(
    ("sight", "serving", "training"),
    [
        (Sight({"a": 4.0}, {"a": 1.0}, {"answer": {"a": 1}}, members={"run": {"a": 2}}), 1, 2),
        (Sight({"a": 4.0}, {"a": 0.0}, {"answer": {"a": 3}}, {"answer": 1}), 4, 0),
        (Sight({"a": 4.0}, {"a": 0.0}, {"answer": {"a": 1}}, {"answer": 1}, members={"run": {"a": 3}}), 1, 3),
        (Sight({"a": 4.0}, {"a": 1.0}, {"answer": {"a": 1}}, members={"run": {"a": 1}}, hired={"run": {"a": 2}}), 1, 2),
        (Sight({"a": 4.0}, {"a": 0.0}, {"answer": {"a": 1}}, workers={"job": 3}), 1, 3),
    ],
    ids=["members", "a replica that starts", "a replica that waits", "members that start", "Ray Train's workers"],
)
def test_who_starts_holds_its_accelerator_and_who_waits_holds_none(sight: Sight, serving: int, training: int) -> None:
    assert holdings(sight) == (serving, training)


def test_every_request_is_sent_when_it_is_due_and_a_stall_is_charged_in_full() -> None:
    async def scene() -> tuple[int, float]:
        release = asyncio.Event()
        asked = 0

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            await reader.readuntil(b"\r\n\r\n")
            asked += 1
            if asked == 3:
                release.set()
            await release.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            answers = await send(f"http://127.0.0.1:{port}/", np.array([0.0, 0.05, 0.3]))
        return len(answers.latencies_s), max(answers.latencies_s)

    count, slowest_s = asyncio.run(scene())
    assert count == 3
    assert slowest_s >= 0.3


def test_a_server_that_is_away_counts_as_failures() -> None:
    answers = asyncio.run(send("http://127.0.0.1:9/", np.array([0.0, 0.0])))
    assert (answers.failed, answers.latencies_s) == (2, [])


def test_a_stand_in_tells_the_autoscaler_what_waits_and_what_a_request_costs() -> None:
    async def scene() -> tuple[dict[str, float], float]:
        replica = SlowAnswer(service_s=0.02, slo_s=1.0)
        answers = [asyncio.ensure_future(replica(None)) for _ in range(5)]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        waiting = await replica.record_autoscaling_stats()
        await asyncio.gather(*answers)
        return waiting, (await replica.record_autoscaling_stats())["late"]

    first, then = asyncio.run(scene())
    assert first["late"] == pytest.approx(4 * 0.02)
    assert first["arriving"] > 0
    assert first["full"] == 1
    assert first["one_s"] == first["full_s"] >= 0.02
    assert then == 0


def test_a_new_replica_s_first_answer_is_counted_from_the_rise_before_it() -> None:
    assert until_new_answers(np.array([30.0, 90.0, 150.0]), [0.1, 33.0, 34.0, 152.5]) == [3.0, 2.5]
    assert until_new_answers(np.array([]), [0.1]) == []


def test_the_regimes_share_out_all_accelerators() -> None:
    ours, default, *others = regimes(4)
    assert (ours.shared, ours.replicas, ours.workers) == (True, (1, 4), (0, 4))
    assert dataclasses.replace(default, name=ours.name, default_policy=False) == ours
    assert all(regime.replicas[0] + regime.workers[0] == 4 and not regime.shared for regime in others)


def test_an_outcome_has_a_row_and_a_picture() -> None:
    tide = [(0.0, 1, 3, 2.0), (1.0, 3, 1, 20.0), (2.0, 1, 3, 2.0)]
    outcome = Outcome("tidepool", 4, 100, 5, 0, 0.8, 812.0, [0.5, 0.7], [0.1], 0, 0.01, 0.97, 2, [3.1], tide)
    (row,) = rows([outcome])
    assert len(row) == len(HEADINGS)
    assert "5 (5.0%)" in row
    assert "2 times, 0.50 to 0.70 s" in row
    assert "<svg" in to_svg(outcome.drawn())
