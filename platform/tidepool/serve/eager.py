"""Coroutines that begin at once, as tasks of Python 3.12 do with `asyncio.eager_task_factory`.

Most requests are answered without waiting for anything. For them a task would cost more than their answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")


def start(coroutine: Coroutine[Any, None, T]) -> T | asyncio.Task[T]:
    """Run `coroutine` until it first waits: what it returns if it never does, or else a task that goes on with it.

    Until then no task is current: what needs one (`asyncio.timeout`) must not come before the first wait.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    return asyncio.ensure_future(_Begun(coroutine, awaited))


class _Begun(Coroutine[Any, None, T]):
    """A coroutine that waits for `awaited` already; a task would have been told when it did."""

    def __init__(self, coroutine: Coroutine[Any, None, T], awaited: Any) -> None:
        self._coroutine, self._awaited = coroutine, [awaited]

    def send(self, value: None) -> Any:
        return self._awaited.pop() if self._awaited else self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def __await__(self) -> Generator[Any, None, T]:
        raise NotImplementedError("tasks alone drive this")
