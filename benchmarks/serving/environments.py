"""A virtual environment for each peer, made when it is first needed and kept until its requirements change."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidepool-benchmarks"
PATIENCE_S = 900.0
"""Seconds that an installation may take."""


class Absent(Exception):
    """A contestant that can't be measured, and why, in one line."""


def python_of(peer: str, root: Path) -> Path:
    """The interpreter of a peer's environment below `root`, which is made if it isn't there.

    Raises:
        Absent: pip can't install the requirements.
    """
    requirements = PEERS / peer / "requirements.txt"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()[:12]
    folder = root / f"{peer}-{digest}"
    python, whole = folder / "bin" / "python", folder / "whole"
    if whole.exists():
        return python
    print(f"installing {peer} into {folder}", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise Absent(f"not installed within {PATIENCE_S:.0f} s") from None
    if done.returncode:
        raise Absent(f"not installed: {(done.stderr.strip().splitlines() or ['pip failed'])[-1]}")
    whole.touch()
    return python
