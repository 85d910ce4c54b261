"""Artifact bytes by their digest: `<root>/<digest>`, written once, never changed.

`root` is a folder, `s3://bucket/...` or `gs://bucket/...`. What is at `<root>/<digest>` is whole: locally it is
copied beside its place, checked and renamed; in a bucket the manifest comes last.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import Any

from tidepool import storage
from tidepool.artifact import Artifact
from tidepool.errors import CorruptionError, StorageError
from tidepool.registry.entities import ModelVersion
from tidepool.telemetry.progress import Progress, quiet


class Blobs:
    """Artifacts below `root`, each stored once however often it is put."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/") if storage.is_remote(root) else str(storage.local_path(root).absolute())

    def uri(self, digest: str) -> str:
        """Where the artifact with this digest is, or would be."""
        return f"{self._root}/{digest}"

    def holds(self, digest: str) -> bool:
        """Whether the artifact is there with every byte right. A remote one is read for that."""
        try:
            return self._verified(self.uri(digest)) == digest
        except StorageError:
            return False

    def check(self, version: ModelVersion) -> None:
        """Make sure that every byte of a registered version is right. A remote one is read for that.

        Raises:
            CorruptionError: a byte differs.
            StorageError: nothing is there, or it can't be read.
        """
        seen = self._verified(version.uri)
        if seen != version.digest:
            what, remedy = f"{version.uri} is not the artifact that was registered", "register it again"
            raise CorruptionError(what, seen=seen, allowed=version.digest, remedy=remedy)

    def put(self, artifact: Artifact, progress: Progress = quiet) -> str:
        """Copy the artifact in unless it is there; the URI of the checked copy.

        Raises:
            CorruptionError: the artifact is damaged; nothing was stored.
            StorageError: the disk is full, or the place can't be written; nothing was stored.
        """
        manifest = _checked(artifact)
        uri = self.uri(artifact.digest)
        if not self.holds(artifact.digest):
            if storage.is_remote(uri):
                self._copy(artifact, manifest, uri, progress)
            else:
                self._copy_beside(artifact, manifest, Path(uri), progress)
        return uri

    def _copy_beside(self, artifact: Artifact, manifest: dict[str, Any], target: Path, progress: Progress) -> None:
        """Copy to a folder of our own, then rename: of several writers the first one wins."""
        beside = target.with_name(f".incoming-{artifact.digest[:16]}-{uuid.uuid4().hex}")
        try:
            self._copy(artifact, manifest, str(beside), progress)
            if target.exists() and not self.holds(artifact.digest):
                shutil.rmtree(target)
            with storage.explained("write", target):
                os.rename(beside, target)
        except StorageError:
            if not self.holds(artifact.digest):
                raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _copy(self, artifact: Artifact, manifest: dict[str, Any], uri: str, progress: Progress) -> None:
        files = manifest["files"]
        facts = {key: value for key, value in manifest.items() if key != "files"}
        with storage.new_folder(uri, facts) as folder:
            for done, name in enumerate(files):
                progress("store", done, len(files), name)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(artifact.folder / name, folder / name)
        seen = self._verified(uri)
        if seen != artifact.digest:
            raise CorruptionError(
                f"the copy at {uri} differs from the artifact", seen=seen, allowed=artifact.digest, remedy="try again"
            )
        progress("store", len(files), len(files))

    def _verified(self, uri: str) -> str:
        """The digest of what is at `uri`, every byte checked."""
        with tempfile.TemporaryDirectory() as scratch:
            return storage.digest(storage.verify(storage.fetch(uri, Path(scratch))))


def _checked(artifact: Artifact) -> dict[str, Any]:
    """The manifest of the artifact, whose bytes are still those that were opened."""
    manifest = storage.verify(artifact.folder)
    seen = storage.digest(manifest)
    if seen != artifact.digest:
        raise CorruptionError(
            f"{artifact.folder} is not the artifact that was opened",
            seen=seen,
            allowed=artifact.digest,
            remedy="open it again, or export the model anew",
        )
    return manifest
