"""A sample of requests and answers, as Parquet files that pyarrow and Ray Data read back.

Which requests are sampled is a function of their id, the same on every replica and in every version. The event loop
only puts a `Record` into a bounded queue; where the disk is too slow, records are dropped and counted, and no request
ever waits. A thread masks each record before anything else, and writes a file whenever enough bytes or seconds have
gathered: whole, or not at all. What hasn't been written when a replica is killed is lost.

Files are at `<folder>/version=<v>/date=<day>/`. One row of a file is one row of a request: `time`, `id`, `row`,
`digest`, `key`, `status`, `seconds`, and for each tensor a column `in.<name>` or `out.<name>` of lists, nested as its
shape is.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from tidepool import storage
from tidepool.errors import StorageError
from tidepool.serve.masking import Mask, outline
from tidepool.serve.protocol import Tensors
from tidepool.serve.splits import place
from tidepool.serve.stacking import weight

log = logging.getLogger(__name__)

RECORD_BYTES = 1000
"""What a record takes beside its arrays."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request and what became of it."""

    time: float
    """When it came, in seconds since the epoch."""
    id: str
    version: str
    digest: str
    inputs: Tensors
    rows: int
    mask: Mask
    """Of the version that answered."""
    outputs: Tensors = field(default_factory=dict)
    status: str = "ok"
    """`ok`, or the type of the error."""
    seconds: float = 0.0
    """Until it was answered."""
    key: str = ""
    """Id of the API key."""


@dataclass(slots=True)
class LogStatistics:
    """Counts since the start."""

    written: int = 0
    dropped: int = 0
    """Records that found the queue full, or that couldn't be written."""
    files: int = 0
    deleted: int = 0
    """Files that were over the bound."""


class RequestLog:
    """Writes `percent` of the requests to `folder`, a path or URI. `close` it, or the last seconds are lost."""

    def __init__(
        self,
        folder: str,
        percent: float,
        *,
        kept_bytes: float = math.inf,
        rotate_bytes: int = 32 << 20,
        rotate_s: float = 60.0,
        max_bytes: int = 64 << 20,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """A file is written every `rotate_bytes` or `rotate_s`; at most `max_bytes` of records wait for the thread.
        When the folder's files have more than `kept_bytes`, whoever wrote them, the oldest are deleted.
        """
        self._folder, self._percent, self._clock = folder, percent, clock
        self._kept_bytes, self._rotate_bytes = kept_bytes, min(rotate_bytes, kept_bytes / 2)
        self._rotate_s, self._max_bytes = rotate_s, max_bytes
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._name = uuid.uuid4().hex[:12]
        self._serial = count()
        self.statistics = LogStatistics()
        self._thread = threading.Thread(target=self._work, name="request log", daemon=True)
        self._thread.start()

    def wants(self, id_: str) -> bool:
        """Whether the request with this id is in the sample."""
        return place(id_, "request log") < self._percent

    def offer(self, record: Record) -> None:
        """Hand a record over; drops it rather than wait."""
        size = _size(record)
        with self._lock:
            if self._waiting_bytes + size > self._max_bytes:
                self.statistics.dropped += 1
                return
            self._waiting_bytes += size
        self._queue.put(record)

    def close(self) -> None:
        """Write what is left; returns when that is done."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        """The thread: gather tables, and write them when they are many or old."""
        gathered: dict[str, list[pa.Table]] = {}
        size, due, open_ = 0, math.inf, True
        while open_:
            try:
                record = self._queue.get(timeout=None if due == math.inf else max(0.0, due - time.monotonic()))
                open_ = record is not None
            except queue.Empty:
                record = None
            if record is not None:
                table = self._masked(record)
                if table is not None:
                    gathered.setdefault(record.version, []).append(table)
                    size += table.nbytes
                    due = min(due, time.monotonic() + self._rotate_s)
                with self._lock:
                    self._waiting_bytes -= _size(record)
            if not open_ or size >= self._rotate_bytes or time.monotonic() >= due:
                for version, tables in gathered.items():
                    self._write(version, tables)
                gathered, size, due = {}, 0, math.inf

    def _masked(self, record: Record) -> pa.Table | None:
        try:
            return to_table(record)
        except Exception as error:  # whatever one record holds, the next must be written
            log.error("a record of the request log can't be written: %s", outline(error))
            self._drop(1)
            return None

    def _write(self, version: str, tables: list[pa.Table]) -> None:
        now = datetime.fromtimestamp(self._clock(), UTC)
        name = f"version={version}/date={now:%Y-%m-%d}/{now:%H%M%S}-{self._name}-{next(self._serial)}.parquet"
        try:
            content = pa.BufferOutputStream()
            pq.write_table(pa.concat_tables(tables, promote_options="permissive"), content, compression="zstd")
            storage.write_file(self._folder, name, content.getvalue().to_pybytes())
        except (StorageError, pa.ArrowException) as error:
            log.error("%d records of the request log are lost: %s", len(tables), outline(error))
            self._drop(len(tables))
            return
        self.statistics.files += 1
        self.statistics.written += len(tables)
        try:
            self.statistics.deleted += prune(self._folder, self._kept_bytes)
        except StorageError as error:
            log.error("the request log can't be kept within its bound: %s", error)

    def _drop(self, records: int) -> None:
        with self._lock:
            self.statistics.dropped += records


def prune(folder: str, kept_bytes: float) -> int:
    """Delete the oldest files until the others have at most `kept_bytes`; returns how many went.

    Raises:
        StorageError: the folder can't be listed.
    """
    store, _ = storage.filesystem(folder)
    files = logged_files(folder)
    excess, deleted = sum(file.size for file in files) - kept_bytes, 0
    for file in files:
        if excess <= 0:
            break
        with contextlib.suppress(OSError):  # another replica was quicker
            store.delete_file(file.path)
            deleted += 1
        excess -= file.size
    return deleted


def logged_files(folder: str) -> list[fs.FileInfo]:
    """The files of a log, oldest first; their paths are for the filesystem of `folder`.

    Raises:
        StorageError: the folder can't be listed.
    """
    store, path = storage.filesystem(folder)
    with storage.explained("list", folder):
        found = store.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    files = [file for file in found if file.base_name.endswith(".parquet")]
    return sorted(files, key=lambda file: file.path.split("/")[-2:])  # date=<day>, <time>-...: whatever the version


def to_table(record: Record) -> pa.Table:
    """The rows of a request as they may be written."""
    rows = record.rows
    columns: dict[str, Any] = {
        "time": pa.array(np.full(rows, int(record.time * 1e6))).cast(pa.timestamp("us", tz="UTC")),
        "id": pa.repeat(record.id, rows),
        "row": pa.array(np.arange(rows, dtype=np.int32)),
        "digest": pa.repeat(record.digest, rows),
        "key": pa.repeat(record.key, rows),
        "status": pa.repeat(record.status, rows),
        "seconds": pa.array(np.full(rows, record.seconds)),
    }
    for side, tensors in (("in", record.inputs), ("out", record.outputs)):
        for name, values in record.mask.tensors(tensors).items():
            if len(values) == rows:
                columns[f"{side}.{name}"] = _column(values)
    return pa.table(columns)


def _column(values: npt.NDArray[Any]) -> pa.Array:
    """Axis 0 becomes the rows, each further axis a level of lists."""
    column = pa.array(values.reshape(-1), pa.binary() if values.dtype == np.object_ else None)
    for axis in range(values.ndim - 1, 0, -1):
        lists = math.prod(values.shape[:axis])
        offsets = np.arange(lists + 1, dtype=np.int32) * np.int32(values.shape[axis])
        column = pa.ListArray.from_arrays(offsets, column)
    return column


def _size(record: Record) -> int:
    return weight(record.inputs) + weight(record.outputs) + RECORD_BYTES
