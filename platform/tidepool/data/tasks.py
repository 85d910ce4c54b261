"""Work on Ray for the data side: a bounded number of tasks at once, Ray Data in silence, errors as they were raised.

Nothing here cancels a task, and functions for Ray Data carry their errors out as rows. When one raises, Ray Data
cancels the task that raised; in Ray 2.60 a cancellation can meet a task that is just done, and then ends the whole
driver ("Tried to complete task that was not pending") instead of telling the error.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import pyarrow as pa
import ray
from ray.exceptions import RayError, RayTaskError, WorkerCrashedError

from tidepool import errors
from tidepool.data.readers import ERROR, reserved
from tidepool.errors import DataError, TidepoolError
from tidepool.telemetry.progress import Progress, quiet

Item = TypeVar("Item")

TASKS_PER_CPU = 2
"""Tasks submitted at once for each CPU: one that runs, and one whose inputs are fetched meanwhile."""

PATIENCE_S = 5.0
"""Seconds that the tasks beside a failed one may take to end before they are left to themselves."""


def cpus_per_task() -> float:
    """CPUs to ask for: one, or all of them where the cluster has less than one; a larger request would hang."""
    total = float(ray.cluster_resources().get("CPU", 0))
    return min(1.0, total) or 1.0  # none yet: nodes may still be joining


def run_bounded(
    launch: Callable[[Item], list[ray.ObjectRef]],
    items: Sequence[Item],
    step: str,
    progress: Progress = quiet,
) -> list[tuple[Any, list[ray.ObjectRef]]]:
    """Launch a task for every item, a few per CPU at once, and wait for all of them.

    A task may return several objects. The first is fetched and should be small; the others stay where they are.

    Returns:
        For every item, in order: the value of the first object, the references to the others.

    Raises:
        TidepoolError: what a task raised; no further task is launched then.
    """
    limit = max(1, round(TASKS_PER_CPU * ray.cluster_resources().get("CPU", 1)))
    results: list[tuple[Any, list[ray.ObjectRef]]] = [(None, [])] * len(items)
    running: dict[ray.ObjectRef, tuple[int, list[ray.ObjectRef]]] = {}
    waiting = iter(enumerate(items))
    done = 0
    try:
        with raised_errors():
            while done < len(items):
                for index, item in waiting:
                    first, *others = launch(item)
                    running[first] = (index, others)
                    if len(running) == limit:
                        break
                for first in ray.wait(list(running))[0]:
                    value = ray.get(first)
                    index, others = running.pop(first)
                    results[index] = (value, others)
                    done += 1
                    progress(step, done, len(items))
    finally:
        _outlast([ref for first, (_, others) in running.items() for ref in (first, *others)])
    return results


def _outlast(refs: Sequence[ray.ObjectRef]) -> None:
    """Let the few tasks end that still run, and look at each outcome: Ray prints the errors that nobody looked at."""
    ended = ray.wait(list(refs), num_returns=len(refs), timeout=PATIENCE_S)[0] if refs else []
    for ref in ended:
        with contextlib.suppress(RayError):
            ray.get(ref)


@contextlib.contextmanager
def silent_ray_data() -> Iterator[None]:
    """Inside the block Ray Data keeps the order of rows, prints nothing, and raises what was raised in a worker.

    Datasets keep the settings they were made under, so make and consume them inside the same kind of block.
    """
    from ray.data import DataContext

    context = copy.deepcopy(DataContext.get_current())
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True
    context.execution_options.preserve_order = True
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with DataContext.current(context), raised_errors():
            yield
    finally:
        logger.setLevel(level)


def carries_errors(function: Callable[..., Iterator[pa.Table]]) -> Callable[..., Iterator[pa.Table]]:
    """A function for Ray Data that yields a table with the TidepoolError instead of raising it; see `raise_carried`."""

    @functools.wraps(function)
    def carrying(*args: Any, **kwargs: Any) -> Iterator[pa.Table]:
        try:
            yield from function(*args, **kwargs)
        except TidepoolError as error:
            yield pa.table({ERROR: [_to_json(error)]})

    return carrying


def raise_carried(block: pa.Table) -> None:
    """Raise the error that a block carries, if it does.

    It may come from a file after all: what is made of it are words, and one of tidepool's own kinds of error.
    """
    if ERROR in block.column_names:
        raise _from_json(block[ERROR].drop_null().to_pylist()[:1])


def _to_json(error: TidepoolError) -> str:
    kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == errors.__name__)
    details = {"seen": error.seen, "allowed": error.allowed, "remedy": error.remedy}
    return json.dumps({"kind": kind, "what": error.what, **details}, default=str)


def _from_json(carried: list[Any]) -> TidepoolError:
    try:
        (text,) = carried
        document = json.loads(text)
        kind = getattr(errors, document.pop("kind"))
        if issubclass(kind, TidepoolError):
            error: TidepoolError = kind(document.pop("what"), **document)
            return error
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    return reserved("a block")


@contextlib.contextmanager
def raised_errors() -> Iterator[None]:
    """Turn a Ray error inside the block into the TidepoolError that caused it, or into a DataError that tells it."""
    try:
        yield
    except RayError as error:
        raise _explained(error) from error


def _explained(error: RayError) -> TidepoolError:
    cause: BaseException | None = error
    while isinstance(cause, RayTaskError):
        cause = cause.cause
        if isinstance(cause, TidepoolError):
            return cause
    if isinstance(cause, WorkerCrashedError):
        return DataError("a worker process ended before its task did", seen=type(cause).__name__,
                         remedy="look for memory pressure in the Ray dashboard, or use smaller files")  # fmt: skip
    message = str(cause).strip().splitlines() or [""]
    return DataError("a data task failed", seen=f"{type(cause).__name__}: {message[0]}")
