"""Exit codes, and how a failure is shown to a person at a terminal."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

from tidepool import errors

P = ParamSpec("P")
R = TypeVar("R")

EXIT_CODES: dict[type[errors.TidepoolError], int] = {
    errors.TidepoolError: 1,
    errors.SpecError: 2,
    errors.RecipeError: 2,
    errors.ClusterError: 3,
    errors.DataError: 4,
    errors.StorageError: 5,
    errors.TrainingError: 6,
    errors.JobError: 6,
    errors.GateError: 7,
    errors.ExportError: 7,
    errors.RegistryError: 8,
    errors.RequestError: 9,
}
"""Exit code of each kind of failure; a subclass has its nearest ancestor's. 2 is also a wrong command line."""


def exit_code(error: BaseException) -> int:
    """The exit code for `error`: its own if it has one (a job's, say), else its nearest class's in `EXIT_CODES`."""
    own = getattr(error, "exit_code", None)
    if isinstance(own, int):
        return own
    return next((EXIT_CODES[kind] for kind in type(error).__mro__ if kind in EXIT_CODES), 1)


def fail(error: BaseException) -> NoReturn:
    """Print the message on stderr and leave with the error's exit code."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    raise SystemExit(exit_code(error))


def guarded(main: Callable[P, R]) -> Callable[P, R]:
    """Wrap an entry point: a TidepoolError becomes one line on stderr and an exit code, no traceback."""

    @functools.wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except errors.TidepoolError as error:
            fail(error)

    return wrapped
