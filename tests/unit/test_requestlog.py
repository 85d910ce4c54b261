"""A sample of requests, masked, in Parquet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tidepool.serve.masking import Mask
from tidepool.serve.protocol import Tensors
from tidepool.serve.requestlog import Record, RequestLog, to_table

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC).timestamp()
SECRET = b"tell-nobody-4711"
NO_RULES = Mask({})


def record(id_: str = "r1", rows: int = 2, **other: Any) -> Record:
    inputs: Tensors = {
        "image": np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3),
        "note": np.array([SECRET] * rows, dtype=np.object_),
        "public": np.array([b"not-a-secret"] * rows, dtype=np.object_),
    }
    fields: dict[str, Any] = {"outputs": {"digit": np.arange(rows)}, "seconds": 0.25, "key": "k1", **other}
    return Record(NOON, id_, "7", "d1", fields.pop("inputs", inputs), rows, fields.pop("mask", NO_RULES), **fields)


def written(folder: Path) -> pa.Table:
    return ds.dataset(folder, partitioning="hive").to_table()


class StuckMask(Mask):
    """Holds the writing thread up until it is let go."""

    def __init__(self) -> None:
        super().__init__({})
        self.go, self.reached = threading.Event(), threading.Event()

    def tensors(self, tensors: Tensors) -> Tensors:
        self.reached.set()
        assert self.go.wait(10)
        return super().tensors(tensors)


@pytest.fixture
def stuck() -> Iterator[StuckMask]:
    mask = StuckMask()
    yield mask
    mask.go.set()


def test_what_is_offered_is_read_back(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path), 100, clock=lambda: NOON)
    log.offer(record("r1"))
    log.offer(record("r2", rows=1, outputs={}, status="InvalidRequest"))
    log.close()
    rows = written(tmp_path).to_pylist()
    assert [(row["id"], row["row"], row["version"], row["date"]) for row in rows] == [
        ("r1", 0, 7, "2026-03-04"),
        ("r1", 1, 7, "2026-03-04"),
        ("r2", 0, 7, "2026-03-04"),
    ]
    assert rows[1]["in.image"] == [[6, 7, 8], [9, 10, 11]]
    assert rows[1]["in.public"] == b"not-a-secret"
    assert [row["out.digit"] for row in rows] == [0, 1, None]
    assert rows[0]["time"] == datetime(2026, 3, 4, 12, tzinfo=UTC)
    assert (rows[0]["digest"], rows[0]["key"], rows[0]["status"], rows[0]["seconds"]) == ("d1", "k1", "ok", 0.25)
    assert rows[2]["status"] == "InvalidRequest"
    assert (log.statistics.written, log.statistics.files, log.statistics.dropped) == (2, 1, 0)


@pytest.mark.parametrize("rule", ["drop", "hash", r"pattern:[\w-]+"])
def test_the_secret_is_nowhere_in_what_is_written(tmp_path: Path, caplog: pytest.LogCaptureFixture, rule: str) -> None:
    log, mask = RequestLog(str(tmp_path / "log"), 100), Mask({"note": rule}, b"key of the installation")
    log.offer(record(mask=mask))
    log.offer(
        record(mask=mask, inputs={"note": np.array([SECRET.decode()], dtype=np.object_)})
    )  # no bytes: rules fail on it
    log.close()
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert files
    everything = caplog.text + "".join(
        f"{file.name} {file.read_bytes()!r} {ds.dataset(file).to_table().to_pylist()}" for file in files
    )
    assert "not-a-secret" in everything, "or a grep would find nothing at all"
    assert SECRET.decode() not in everything
    assert log.statistics.dropped == (0 if rule == "drop" else 1)


def test_a_sample_is_the_same_everywhere(tmp_path: Path) -> None:
    one, other = (RequestLog(str(tmp_path / name), 10) for name in "ab")
    ids = [f"request-{number}" for number in range(5000)]
    wanted = [id_ for id_ in ids if one.wants(id_)]
    assert wanted == [id_ for id_ in ids if other.wants(id_)]
    assert len(wanted) / len(ids) == pytest.approx(0.1, abs=0.02)
    one.close()
    other.close()


def test_when_the_disk_is_slow_records_are_dropped_and_counted(tmp_path: Path, stuck: StuckMask) -> None:
    log = RequestLog(str(tmp_path), 100, max_bytes=10_000)
    for number in range(100):
        log.offer(record(str(number), mask=stuck))
    assert stuck.reached.wait(10)
    kept = 100 - log.statistics.dropped
    assert 1 <= kept < 10
    stuck.go.set()
    log.close()
    assert log.statistics.written == kept
    log.close()


def test_a_file_is_written_when_enough_bytes_have_gathered(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path), 100, rotate_bytes=1000)
    for number in range(50):
        log.offer(record(str(number)))
    log.close()
    assert 2 < log.statistics.files <= 50
    assert len(set(written(tmp_path)["id"].to_pylist())) == 50


def test_a_file_is_written_when_its_time_has_come(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path), 100, rotate_s=0.01)
    log.offer(record())
    wait_for_a_file(tmp_path)
    assert len(written(tmp_path)) == 2
    log.close()
    assert log.statistics.files == 1


def wait_for_a_file(folder: Path) -> None:
    ticks = threading.Event()
    for _ in range(1000):
        if list(folder.rglob("[!.]*.parquet")):
            return
        ticks.wait(0.01)
    raise AssertionError("nothing was written")


def test_a_place_that_cannot_be_written_loses_records_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = RequestLog(str(tmp_path / "file" / "log"), 100)
    log.offer(record())
    log.close()
    assert (log.statistics.written, log.statistics.dropped) == (0, 1)


def test_the_oldest_files_go_when_there_are_too_many_bytes(tmp_path: Path) -> None:
    days = iter(NOON + 86_400 * day for day in range(50))
    log = RequestLog(str(tmp_path), 100, kept_bytes=20_000, rotate_bytes=1, clock=days.__next__)
    for number in range(50):
        log.offer(record(str(number)))
    log.close()
    kept = written(tmp_path)["id"].to_pylist()
    assert sum(file.stat().st_size for file in tmp_path.rglob("*.parquet")) <= 20_000
    assert sorted(set(kept), key=int) == [str(number) for number in range(50 - len(set(kept)), 50)]
    assert log.statistics.deleted == 50 - len(set(kept)) > 0


def test_versions_do_not_share_a_file(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path), 100)
    log.offer(record())
    log.offer(Record(NOON, "r2", "8", "d2", {"image": np.array([b"a name now"], dtype=np.object_)}, 1, NO_RULES))
    log.close()
    assert log.statistics.files == 2
    assert sorted(folder.name for folder in tmp_path.iterdir()) == ["version=7", "version=8"]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (np.ones((2, 3), np.float16), "list<item: halffloat>"),
        (np.ones(2, np.bool_), "bool"),
        (np.zeros((2, 0), np.int64), "list<item: int64>"),
        (np.ones((2, 1, 0, 2), np.uint8), "list<item: list<item: list<item: uint8>>>"),
        (np.array([[b"a"], [b"b"]], dtype=np.object_), "list<item: binary>"),
    ],
)
def test_tensors_of_every_kind_have_a_column(values: np.ndarray[Any, Any], kind: str) -> None:
    column = to_table(record(inputs={"x": values}))["in.x"]
    assert str(column.type) == kind
    assert len(column) == 2
    assert column.to_pylist() == values.tolist()
