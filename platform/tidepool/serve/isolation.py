"""One bad request fails alone: a batch that failed is run again by halves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tidepool.errors import RequestError

BROKEN_AFTER = 8
"""Requests that failed alone, and none that succeeded, after which the engine is to blame and not the requests. Those
that the recipe itself refuses are at fault for certain, and don't count."""

Request = TypeVar("Request")
Answer = TypeVar("Answer")


def isolate(
    run: Callable[[Sequence[Request]], Sequence[Answer]], requests: Sequence[Request]
) -> list[Answer | Exception]:
    """Run requests together; where that fails, by halves, so that one at fault fails alone.

    One guilty among n costs 2 * log2(n) more runs. If the first `BROKEN_AFTER` that run alone all fail, the last one
    does too and nothing has succeeded, the engine is broken: the rest fail untried, with an error that quotes nobody.
    """
    outcomes: list[Answer | Exception] = [RuntimeError("not run")] * len(requests)
    parts = [(0, len(requests))] if requests else []
    alone, succeeded, tried_last = 0, False, False
    while parts:
        start, end = parts.pop()
        if alone > BROKEN_AFTER and not succeeded:
            outcomes[start:end] = [RuntimeError("the engine failed for all that were tried")] * (end - start)
            continue
        if alone == BROKEN_AFTER and not (succeeded or tried_last):
            tried_last = True
            (first, last), *others = [*parts, (start, end)]  # the end of the batch is at the bottom
            parts = [*([(first, last - 1)] if last - first > 1 else []), *others, (last - 1, last)]
            continue
        try:
            outcomes[start:end] = run(requests[start:end])
            succeeded = True
        except BaseException as raised:
            if end - start == 1:
                outcomes[start] = presentable(raised)
                alone += not isinstance(raised, RequestError)
            else:
                middle = (start + end) // 2
                parts += [(middle, end), (start, middle)]
    return outcomes


def presentable(raised: BaseException) -> Exception:
    """What a future can carry: a model that exits or raises StopIteration must not take the event loop with it."""
    if isinstance(raised, Exception) and not isinstance(raised, StopIteration):
        return raised
    return RuntimeError(f"the model raised {type(raised).__name__}")
