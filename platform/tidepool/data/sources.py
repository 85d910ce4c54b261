"""Where rows come from: `builtin:<name>`, or a path or URI to Parquet, CSV, JSON lines, text or images.

    files -> parts (byte ranges, row groups, whole files) -> pieces of about PIECE_BYTES -> one Ray Data block or more

How a source is cut depends on the source alone, not on the cluster: that keeps results equal on one CPU and on many.
A folder is read whole, its files in the order of their paths; names that begin with "." or "_" are passed over.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pyarrow import fs

from tidepool import storage
from tidepool.data.readers import PIECE_BYTES, Columns, File, Part, cut, format_of, read_parts
from tidepool.errors import DataError
from tidepool.recipe import Recipe

if TYPE_CHECKING:
    from ray.data import Dataset

BUILTIN = "builtin:"

MOST_PIECES = 2000
"""Larger sources are cut into larger pieces, so that the number of objects between tasks stays in bounds."""

Piece = tuple[Part, ...]
"""What one task reads: a part, or several small neighbours."""


def read(source: str, recipe: Recipe) -> Dataset:
    """The rows of `source`, in order, as a lazy Ray Dataset with the columns that the source has.

    A file that turns out to be corrupt becomes a block that carries the error: `checks.check` raises it.

    Raises:
        DataError: nothing is there, a file is empty, or formats are mixed.
        RecipeError: the recipe has no such built-in data.
    """
    import ray

    from tidepool.data.tasks import carries_errors, cpus_per_task, silent_ray_data

    if source.startswith(BUILTIN):
        table = recipe.builtin(source.removeprefix(BUILTIN))
        rows = max(1, PIECE_BYTES * table.num_rows // max(1, table.nbytes))
        with silent_ray_data():
            return ray.data.from_arrow([table.slice(i, rows) for i in range(0, max(1, table.num_rows), rows)])
    parts = pieces(source)
    with silent_ray_data():
        # one read task a piece: Ray's own default of 200 is wrong on a small machine
        numbers = ray.data.range(len(parts), override_num_blocks=len(parts))
        return numbers.map_batches(
            carries_errors(_read_numbered),
            batch_size=None,
            fn_kwargs={"pieces": parts, "columns": recipe.columns},
            num_cpus=cpus_per_task(),
        )


def pieces(source: str | Path | Sequence[str | Path], format: str | None = None) -> list[Piece]:
    """Cut the files of one or several sources into pieces; `format` overrides what the files' names say.

    Raises:
        DataError: nothing is there, a file is empty, formats are mixed, or there are no rows.
    """
    found = files(source)
    formats = {format or format_of(file.path): file.path for file in found}
    if len(formats) > 1:
        raise DataError(
            f"{source} mixes formats",
            seen=", ".join(f"{name} ({PurePosixPath(path).name})" for name, path in sorted(formats.items())),
            allowed="files of one format",
            remedy="move the others elsewhere, or let their names begin with _",
        )
    (only,) = formats
    size = max(PIECE_BYTES, sum(file.size for file in found) // MOST_PIECES)
    parts = [part for file in found for part in cut(file, only, size)]
    if not parts:
        remedy = "put rows there, or name another source"
        raise DataError(f"{source} holds no rows", seen=f"{len(found)} {only} file(s)", remedy=remedy)
    return list(_grouped(parts, size))


def digest(source: str, recipe: Recipe) -> str:
    """Hex sha256 that changes when the rows of `source` do.

    Local files and built-in tables count by content; files in a bucket by name, size and time of change.

    Raises:
        DataError: nothing is there.
    """
    if source.startswith(BUILTIN):
        sink = pa.BufferOutputStream()
        table = recipe.builtin(source.removeprefix(BUILTIN)).combine_chunks()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        return hashlib.sha256(sink.getvalue()).hexdigest()
    found = files(source)
    root = PurePosixPath(found[0].path).parent if len(found) == 1 else PurePosixPath(_resolve(source)[1])
    entries: list[list[Any]] = []
    for file in found:
        name = str(PurePosixPath(file.path).relative_to(root))
        if storage.is_remote(source):
            entries.append([name, file.size, file.modified])
        else:
            entries.append([name, storage.sha256(Path(file.path))])
    return hashlib.sha256(storage.canonical_json(entries)).hexdigest()


def files(source: str | Path | Sequence[str | Path]) -> list[File]:
    """The files at one or several paths or URIs; those of a folder in the order of their paths.

    Raises:
        DataError: no such file or folder, an empty folder, or a store that can't be reached.
    """
    if not isinstance(source, str | Path):
        return [file for each in source for file in files(each)]
    try:
        store, root = _resolve(source)
        info = store.get_file_info(root)
        found = [info] if info.is_file else []
        if info.type == fs.FileType.Directory:
            within = store.get_file_info(fs.FileSelector(root, recursive=True))
            found = [each for each in within if each.is_file and _is_visible(each.path, root)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            "can't reach the source",
            seen=f"{source}: {error}",
            remedy="check the path or URI, and the credentials of who runs the job",
        ) from None
    if info.type == fs.FileType.NotFound:
        remedy = None if storage.is_remote(str(source)) else f"it is looked for at {root}"
        raise DataError("no such file or folder", seen=source, remedy=remedy)
    if not found:
        raise DataError(
            f"no files in {source}", seen="an empty folder", allowed="Parquet, CSV, JSON lines, text, images"
        )
    return [File(store, each.path, each.size, each.mtime_ns) for each in sorted(found, key=lambda each: each.path)]


def _resolve(source: str | Path) -> tuple[fs.FileSystem, str]:
    if storage.is_remote(str(source)):
        store, path = fs.FileSystem.from_uri(str(source))
        return store, path
    return fs.LocalFileSystem(), str(storage.local_path(str(source)).absolute())


def _is_visible(path: str, root: str) -> bool:
    return not any(name.startswith((".", "_")) for name in PurePosixPath(path).relative_to(root).parts)


def _grouped(parts: Sequence[Part], size: int) -> Iterator[Piece]:
    piece: list[Part] = []
    length = 0
    for part in parts:
        if piece and length + part.length > size:
            yield tuple(piece)
            piece, length = [], 0
        piece.append(part)
        length += part.length
    if piece:
        yield tuple(piece)


def _read_numbered(batch: dict[str, Any], pieces: list[Piece], columns: Columns) -> Iterator[pa.Table]:
    for number in batch["id"]:
        yield from read_parts(pieces[number], columns)
