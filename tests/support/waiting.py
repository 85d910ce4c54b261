"""Waiting for what is certain to come, but not when."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(holds: Callable[[], bool], deadline_s: float = 60.0) -> None:
    """Return as soon as `holds` does; fail after the deadline."""
    until = time.monotonic() + deadline_s
    while not holds():
        assert time.monotonic() < until, f"it doesn't hold after {deadline_s:g} s"
        time.sleep(0.05)
