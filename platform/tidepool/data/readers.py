"""One function per format: a part of a file to Arrow tables.

| format  | file names                               | columns                               | cut into    |
|---------|------------------------------------------|---------------------------------------|-------------|
| parquet | .parquet .pq                             | as stored                             | row groups  |
| csv     | .csv                                     | those of the first line               | never       |
| json    | .jsonl .ndjson .json (one object a line) | the objects' keys                     | byte ranges |
| image   | .png .jpg .jpeg .bmp .gif .webp .tiff    | image (uint8), label (folder), path   | never       |
| text    | any other                                | text (a line without its end)         | byte ranges |

CSV, JSON lines and text may be compressed (.gz, .bz2, .zst, .lz4); they are then read whole.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from pyarrow import csv, fs, json, parquet

from tidepool.errors import DataError
from tidepool.recipe import ColumnCheck

PIECE_BYTES = 8 << 20
"""What one task reads at once, in bytes: big enough to outweigh a task's start, small enough to share out evenly."""

DECODED_IMAGE = 8
"""How much larger than its file an image is in memory, roughly."""

SUFFIXES = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json",
    ".png": "image", ".jpg": "image", ".jpeg": "image", ".bmp": "image", ".gif": "image", ".webp": "image",
    ".tif": "image", ".tiff": "image",
}  # fmt: skip

Columns = Mapping[str, ColumnCheck]

ERROR = "__error__"
"""Column of a block that carries an error between tasks; no source may have it."""


@dataclass(frozen=True)
class File:
    """A file in a store. `size` in bytes, `modified` in nanoseconds since 1970 where the store knows it."""

    store: fs.FileSystem
    path: str
    size: int
    modified: int | None


@dataclass(frozen=True)
class Part:
    """A stretch of a file: bytes (text, JSON lines), a row group (Parquet), or all of it."""

    file: File
    format: str
    start: int
    length: int


def format_of(path: str) -> str:
    """The format that the file's name stands for."""
    plain = PurePosixPath(path.lower())
    return SUFFIXES.get((plain.with_suffix("") if _is_compressed(path) else plain).suffix, "text")


def cut(file: File, format: str, size: int = PIECE_BYTES) -> list[Part]:
    """The parts of a file, none much larger than `size` bytes where the format allows.

    Raises:
        DataError: the file is empty, or not of this format.
    """
    if file.size == 0:
        raise DataError(f"{file.path} is empty", seen="0 bytes", remedy="remove it, or write it anew")
    if format == "parquet":
        try:
            metadata = parquet.ParquetFile(file.path, filesystem=file.store).metadata
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file, format, error) from None
        groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
        return [Part(file, format, i, group.total_byte_size) for i, group in enumerate(groups) if group.num_rows]
    if format in ("text", "json") and not _is_compressed(file.path):
        step = math.ceil(file.size / math.ceil(file.size / size))
        return [Part(file, format, start, min(step, file.size - start)) for start in range(0, file.size, step)]
    return [Part(file, format, 0, file.size * DECODED_IMAGE if format == "image" else file.size)]


def read_parts(parts: Iterable[Part], columns: Columns) -> Iterator[pa.Table]:
    """The rows of some parts in order; neighbours of one schema are joined up to `PIECE_BYTES`.

    `columns` are the recipe's: text formats read them so that nothing is lost by guessing a type.

    Raises:
        DataError: a file is corrupt or not of its format, or has a column `ERROR`; names the file.
    """
    pending: list[pa.Table] = []
    size = 0
    for part in parts:
        for table in _read(part, columns):
            if ERROR in table.column_names:
                raise reserved(part.file.path)
            if pending and (table.schema != pending[0].schema or size > PIECE_BYTES):
                yield pa.concat_tables(pending)
                pending, size = [], 0
            pending.append(table)
            size += table.nbytes
    if pending:
        yield pa.concat_tables(pending)


def reserved(where: str) -> DataError:
    """The error of data that has a column `ERROR` of its own."""
    return DataError(f"{where} has a column of a name that is tidepool's own", seen=ERROR, remedy="rename it")


def _read(part: Part, columns: Columns) -> Iterator[pa.Table]:
    try:
        yield from _READERS[part.format](part, columns)
    except (pa.ArrowException, OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for broken PNG
        raise _unreadable(part.file, part.format, error) from error


def _read_parquet(part: Part, columns: Columns) -> Iterator[pa.Table]:
    file = parquet.ParquetFile(part.file.path, filesystem=part.file.store)
    yield file.read_row_group(part.start, columns=_wanted(file.schema_arrow.names, columns), use_threads=False)


def _read_csv(part: Part, columns: Columns) -> Iterator[pa.Table]:
    """Declared columns come as strings: `checks.conform` converts them and can tell which rows do not fit."""
    reading = csv.ReadOptions(use_threads=False, block_size=PIECE_BYTES)
    with part.file.store.open_input_stream(part.file.path) as stream, csv.open_csv(stream, reading) as reader:
        names = _wanted(reader.schema.names, columns)
    converting = csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string()), include_columns=names)
    with (
        part.file.store.open_input_stream(part.file.path) as stream,
        csv.open_csv(stream, reading, convert_options=converting) as reader,
    ):
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _read_json(part: Part, columns: Columns) -> Iterator[pa.Table]:
    """Declared strings stay strings: Arrow would take "2020-01-01" for a time."""
    content = _whole_lines(part)
    if content.strip():
        strings = pa.schema([(name, pa.string()) for name, check in columns.items() if check.dtype == "string"])
        table = json.read_json(
            io.BytesIO(content),
            json.ReadOptions(use_threads=False, block_size=max(len(content), 1 << 20)),
            json.ParseOptions(explicit_schema=strings),
        )
        yield table.select(_wanted(table.column_names, columns))


def _read_text(part: Part, columns: Columns) -> Iterator[pa.Table]:  # noqa: ARG001
    content = _whole_lines(part).replace(b"\r\n", b"\n")
    if content:
        lines = split_lines(content)
        lines.validate(full=True)  # not UTF-8: ArrowInvalid
        yield pa.table({"text": lines})


def _read_image(part: Part, columns: Columns) -> Iterator[pa.Table]:  # noqa: ARG001
    """Grey images as height x width numbers, others as height x width x 3 (RGB), row by row, top left first."""
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise DataError("reading images needs Pillow", seen=part.file.path, remedy="pip install pillow") from None
    with part.file.store.open_input_file(part.file.path) as stream:
        image = Image.open(io.BytesIO(stream.read()))
    pixels = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"), dtype=np.uint8).reshape(-1)
    path = PurePosixPath(part.file.path)
    values = pa.FixedSizeListArray.from_arrays(pa.array(pixels), len(pixels))
    yield pa.table({"image": values, "label": [path.parent.name], "path": [str(path)]})


_READERS: dict[str, Callable[[Part, Columns], Iterator[pa.Table]]] = {
    "parquet": _read_parquet, "csv": _read_csv, "json": _read_json, "text": _read_text, "image": _read_image,
}  # fmt: skip


def _wanted(names: list[str], columns: Columns) -> list[str]:
    """The declared columns; all that there are if one is missing, so that the error can show them."""
    return list(columns) if columns and set(columns) <= set(names) else names


def split_lines(content: bytes) -> pa.StringArray:
    """The lines of `content` without their ends, made from two buffers and not from a Python object a line."""
    if not content.endswith(b"\n"):
        content += b"\n"
    ends = np.flatnonzero(np.frombuffer(content, np.uint8) == ord("\n"))
    offsets = np.zeros(len(ends) + 1, np.int32)
    offsets[1:] = ends - np.arange(len(ends))  # an earlier line end is one byte that is gone
    data = content.replace(b"\n", b"")
    return pa.StringArray.from_buffers(len(ends), pa.py_buffer(offsets), pa.py_buffer(data))


def _whole_lines(part: Part) -> bytes:
    """The lines that begin inside the part: it skips the line that began before it, and finishes its last one."""
    if _is_compressed(part.file.path):
        with part.file.store.open_input_stream(part.file.path) as stream:
            return bytes(stream.read())
    with part.file.store.open_input_file(part.file.path) as file:
        if part.start == 0:
            content = bytes(file.read(part.length))
        else:
            file.seek(part.start - 1)  # if this byte is a line end, the part begins with a line of its own
            content = bytes(file.read(part.length + 1)).partition(b"\n")[2]
        if content and not content.endswith(b"\n"):
            content += _rest_of_line(file)
        return content


def _rest_of_line(file: pa.NativeFile) -> bytes:
    rest = bytearray()
    while more := file.read(1 << 16):
        line, end, _ = more.partition(b"\n")
        rest += line + end
        if end:
            break
    return bytes(rest)


def _is_compressed(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in (".gz", ".bz2", ".zst", ".lz4")


def _unreadable(file: File, format: str, error: BaseException) -> DataError:
    message = str(error).strip().splitlines() or [type(error).__name__]
    remedy = "one JSON object a line is expected" if format == "json" else "restore the file, or name it for its format"
    return DataError(f"can't read {file.path} as {format}", seen=message[0], remedy=remedy)
