"""Bytes on a disk or in a bucket: one way to write folders whole, and to know that they are whole.

A folder counts as written once its `manifest.json` is there: it is written last and holds size and sha256 of
every other file, and its own. On a local disk the folder is built beside its place and renamed, so it appears at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tidepool.errors import CorruptionError, StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

MANIFEST = "manifest.json"

BUILDING = ".building-"
"""Begins the name of a folder that is being filled; of one that stays, whoever filled it was killed."""


def is_remote(uri: str) -> bool:
    """Whether `uri` names a bucket (`s3://`, `gs://`, ...) and not a local path."""
    return "://" in uri and not uri.startswith("file://")


def local_path(uri: str) -> Path:
    """The local path that `uri` names, with `file://` and `~` resolved."""
    return Path(uri.removeprefix("file://")).expanduser()


def sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(document: Any) -> bytes:
    """JSON bytes that are equal for equal documents."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


@contextlib.contextmanager
def explained(action: str, where: object) -> Iterator[None]:
    """Turn an OSError inside the block into a `StorageError` that says what to do."""
    try:
        yield
    except OSError as error:
        remedies = {28: "free some space, or set TIDEPOOL_STORAGE_URL to a larger disk", 13: "check the permissions"}
        remedy = remedies.get(error.errno or 0)
        raise StorageError(f"can't {action} {where}", seen=error.strerror or error, remedy=remedy) from error


def write_json(path: Path, document: Any, mode: int = 0o644) -> None:
    """Write JSON as `write_text` does."""
    write_text(path, json.dumps(document, indent=2), mode)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write text so that a reader sees the old file or the new one, never a part."""
    with explained("write", path):
        _replace(path, text.encode(), mode)


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """Others who change this file wait: between reading and writing, what they did would be lost."""
    with explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("a")
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_file(folder: str, name: str, content: bytes) -> dict[str, Any]:
    """Write one file below the folder or URI `folder`; a reader sees the old file or the new one, never a part.

    Returns:
        The file's entry for `seal`.

    Raises:
        StorageError: the disk is full, or the place can't be written.
    """
    with explained("write", f"{folder}/{name}"):
        if is_remote(folder):
            _put(folder, name, content)
        else:
            _replace(local_path(folder) / name, content, 0o644)
    return {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def seal(folder: str, files: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
    """Make a folder count as written whose `files` (name to entry) were put in place with `write_file`.

    Any number of machines may have written them. Files that are there but not named do not belong to the folder.

    Raises:
        StorageError: the place can't be written.
    """
    manifest = {**facts, "files": {name: dict(files[name]) for name in sorted(files)}}
    write_file(folder, MANIFEST, _manifest_bytes(manifest))


@contextlib.contextmanager
def new_folder(uri: str, facts: Mapping[str, Any] | None = None) -> Iterator[Path]:
    """A local folder to fill; on leaving the block it is sealed with a manifest and appears at `uri`, whole.

    `facts` go into the manifest. If the block raises, nothing appears and what was there before stays.

    Raises:
        StorageError: the disk is full, or `uri` can't be written.
    """
    target = None if is_remote(uri) else local_path(uri)
    parent = target.parent if target else Path(tempfile.gettempdir())
    with explained("write", uri):
        parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=BUILDING, dir=parent))
    try:
        with explained("write", uri):
            yield building
            _seal(building, facts or {})
            _swap(building, target) if target else _upload(building, uri)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def verify(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder whose files all have the recorded size and sha256.

    Raises:
        CorruptionError: no manifest, a missing file, or a flipped byte.
    """
    manifest = read_manifest(folder)
    for name, entry in manifest["files"].items():
        path = folder / name
        seen = sha256(path) if path.is_file() else "no such file"
        if seen != entry["sha256"]:
            raise CorruptionError(
                f"{path} is not the file that was written",
                seen=seen[:19],
                allowed=f"sha256 {entry['sha256'][:12]}...",
                remedy="restore it from a copy, or make it anew",
            )
    return manifest


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """The manifest of a sealed folder or URI, without its own sha256; files unchecked, and not fetched.

    Raises:
        CorruptionError: no manifest, one with a byte that wasn't written so, or one that names files outside `folder`.
    """
    try:
        content = _get(str(folder), MANIFEST)
        manifest: dict[str, Any] = json.loads(content)
        del manifest["sha256"]
        digests = [entry["sha256"] for entry in manifest["files"].values()]
        whole = content == _manifest_bytes(manifest) and all(isinstance(digest, str) for digest in digests)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{folder} is not a complete folder of tidepool's"
        raise CorruptionError(what, seen=type(error).__name__, allowed=MANIFEST) from None
    if not whole:
        remedy = "restore it from a copy, or make it anew"
        raise CorruptionError(f"{folder}/{MANIFEST} is not the file that was written", remedy=remedy)
    if outside := [name for name in manifest["files"] if name.startswith("/") or ".." in PurePosixPath(name).parts]:
        raise CorruptionError(f"{folder}/{MANIFEST} names files outside its folder", seen=", ".join(outside))
    return manifest


def digest(manifest: Mapping[str, Any]) -> str:
    """Hex sha256 that stands for a sealed folder: of its manifest, which holds the sha256 of every file."""
    return hashlib.sha256(canonical_json(manifest)).hexdigest()


def fetch(uri: str, into: Path) -> Path:
    """A local folder with what is at `uri`: the place itself if it is local, else a copy below `into`.

    Raises:
        StorageError: nothing is there, or it can't be read.
    """
    if not is_remote(uri):
        path = local_path(uri)
        if not path.is_dir():
            raise StorageError("no such folder", seen=path, remedy="put it back, or see TIDEPOOL_STORAGE_URL")
        return path
    from pyarrow import fs

    target = into / hashlib.sha256(uri.encode()).hexdigest()[:32]
    if not target.is_dir():
        store, source = filesystem(uri)
        with explained("read", uri):
            into.mkdir(parents=True, exist_ok=True)
            copying = Path(tempfile.mkdtemp(prefix=".copying-", dir=into))
            try:
                fs.copy_files(source, str(copying), source_filesystem=store)
                with contextlib.suppress(OSError):  # another process was quicker
                    copying.rename(target)
            finally:
                shutil.rmtree(copying, ignore_errors=True)
    return target


def filesystem(uri: str) -> tuple[FileSystem, str]:
    """What reads and writes at `uri`, and the path there.

    Raises:
        StorageError: no such kind of storage, or it can't be reached.
    """
    from pyarrow import fs

    try:
        with explained("reach", uri):
            store, path = fs.FileSystem.from_uri(uri)
    except ValueError as error:  # pyarrow's ArrowInvalid
        raise StorageError("not a place to store", seen=uri, allowed="a path, s3://... or gs://...") from error
    return store, path


def _replace(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove(uri: str) -> None:
    """Delete the folder at `uri`, if it is there."""
    if not is_remote(uri):
        shutil.rmtree(local_path(uri), ignore_errors=True)
        return
    store, path = filesystem(uri)
    with explained("delete", uri):
        store.delete_dir(path)


def _seal(folder: Path, facts: Mapping[str, Any]) -> None:
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    seal(str(folder), files, facts)


def _manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The one text that says this, with the sha256 of all the rest at its end: any other bytes are damaged ones."""
    rest = json.dumps(manifest, indent=2).encode()
    return json.dumps({**manifest, "sha256": hashlib.sha256(rest).hexdigest()}, indent=2).encode()


def _swap(building: Path, target: Path) -> None:
    """Put `building` in the place of `target`, which is deleted only then, and comes back if that fails."""
    building.chmod(0o755)
    with contextlib.ExitStack() as undo:
        if target.is_dir():
            before = target.rename(building.with_name(f"{building.name}-before"))
            undo.callback(before.rename, target)
        building.rename(target)
        undo.pop_all()
    shutil.rmtree(f"{building}-before", ignore_errors=True)


def _upload(building: Path, uri: str) -> None:
    files = [path for path in building.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.name == MANIFEST):
        _put(uri, path.relative_to(building).as_posix(), path.read_bytes())


def _put(uri: str, name: str, content: bytes) -> None:
    store, path = filesystem(uri)
    destination = f"{path.rstrip('/')}/{name}"
    store.create_dir(destination.rpartition("/")[0], recursive=True)
    with store.open_output_stream(destination) as out:
        out.write(content)


def _get(folder: str, name: str) -> bytes:
    if not is_remote(folder):
        return (local_path(folder) / name).read_bytes()
    store, path = filesystem(folder)
    return bytes(store.open_input_stream(f"{path.rstrip('/')}/{name}").read())
