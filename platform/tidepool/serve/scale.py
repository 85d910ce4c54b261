"""How much memory a model takes: what the C library's allocator has given out after loading it, less what before.

Not the process's resident memory: that doesn't shrink when a model is let go, nor grow when the next one moves in.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

Thing = TypeVar("Thing")


FIELDS = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")


class _MallocInfo(ctypes.Structure):
    """Source: man 3 mallinfo2 (glibc 2.33 and later)."""

    _fields_ = [(name, ctypes.c_size_t) for name in FIELDS]


@functools.cache
def _mallinfo() -> Callable[[], Any] | None:
    found = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if found is not None:
        found.restype = _MallocInfo
    return found


def allocated() -> int:
    """Bytes that this process has from the allocator; 0 where the C library doesn't say."""
    mallinfo = _mallinfo()
    if mallinfo is None:
        return 0
    info = mallinfo()
    return int(info.uordblks + info.hblkhd)


class Scale:
    """Weighs one thing at a time: two that are made at once couldn't be told apart. For any thread."""

    def __init__(self, allocated: Callable[[], int] = allocated) -> None:
        self._allocated = allocated
        self._lock = threading.Lock()
        self._discarded: deque[object] = deque()

    def weigh(self, make: Callable[[], Thing], least: int) -> tuple[Thing, int]:
        """What `make` makes, and the bytes that it takes: `least` where less was seen."""
        with self._lock:
            self._discarded.clear()
            before = self._allocated()
            made = make()
            return made, max(least, self._allocated() - before)

    def discard(self, thing: object) -> None:
        """Let go of a thing, but not while another is weighed."""
        self._discarded.append(thing)
        if self._lock.acquire(blocking=False):
            self._discarded.clear()
            self._lock.release()
