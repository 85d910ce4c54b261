"""Every exception that tidepool raises on purpose.

    TidepoolError
    ├── SpecError             a spec.yaml, an override or a TIDEPOOL_* variable is wrong
    ├── RecipeError           a recipe can't be found, loaded, or breaks its contract
    ├── DataError             a source is missing, unreadable, or fails a check
    ├── StorageError          bytes can't be written or read (disk full, no permission, no such URI)
    │   └── CorruptionError   bytes differ from the digest that was recorded for them
    ├── TrainingError         a training run ended without a result
    ├── GateError             an evaluation gate was not met
    ├── ExportError           an exported model differs from the original by more than is allowed
    ├── RegistryError         the registry refuses an operation
    │   ├── ModelNotFound     no registered model, version or alias of that name
    │   └── NothingToRollBack the alias has no earlier version
    ├── ClusterError          the cluster can't be started, reached or stopped
    │   ├── NoCluster         no cluster is running
    │   └── PortInUse         a port that was asked for is taken
    ├── JobError              a submitted job failed
    │   └── JobFailed         it ended without success, with an exit code
    └── RequestError          an inference request can't be answered
        ├── InvalidRequest    malformed JSON, or a tensor of wrong name, shape, datatype or count
        ├── RequestTooLarge   a body over the limit
        ├── Unauthenticated   no key, or one that isn't known
        ├── Forbidden         a known key without the right to do this
        ├── UnknownModel      no such model or version is served here
        ├── Overloaded        the queue is full, or the deadline can't be met
        │   └── TryLater      and when to come back; also a key over its rate or quota
        ├── ClientGone        the client went away before its answer was there
        ├── NotReady          the model is still being loaded
        └── DoesNotFit        a shared model is larger than the memory of all of them together

None of them knows HTTP, gRPC or exit codes: `serve.rest`, `serve.grpc` and `cli.main` hold one table each.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_SEEN = 4000
"""Characters of a value seen that a message shows: whoever sent a megabyte knows it."""


class TidepoolError(Exception):
    """A failure with a message for a person: what is wrong, the value seen, what is allowed, what to do.

    >>> str(TidepoolError("unknown key", seen="epoch", allowed="epochs", remedy="rename it"))
    'unknown key. Seen: epoch. Allowed: epochs. Remedy: rename it.'
    """

    def __init__(
        self,
        what: str,
        *,
        seen: object = None,
        allowed: object = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(what, seen, allowed, remedy)
        self.what, self.seen, self.allowed, self.remedy = what, seen, allowed, remedy

    def __str__(self) -> str:
        parts = [self.what]
        if self.seen is not None:
            seen = _written(self.seen)
            parts.append(f"Seen: {seen if len(seen) <= LONGEST_SEEN else seen[:LONGEST_SEEN] + '...'}")
        parts += [
            f"{label}: {value}"
            for label, value in (("Allowed", self.allowed), ("Remedy", self.remedy))
            if value is not None
        ]
        return " ".join(part if part.endswith((".", "!", "?")) else part + "." for part in parts)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.seen, self.allowed, self.remedy)


def _written(seen: object) -> str:
    try:
        return str(seen)
    except RecursionError:  # a thousand lists in one another: clients send anything
        return type(seen).__name__


def _rebuild(kind: type[TidepoolError], what: str, seen: object, allowed: object, remedy: str | None) -> TidepoolError:
    return kind(what, seen=seen, allowed=allowed, remedy=remedy)


class SpecError(TidepoolError):
    """A spec.yaml, an override or a TIDEPOOL_* variable is wrong."""


class RecipeError(TidepoolError):
    """A recipe can't be found, loaded, or breaks its contract."""


class DataError(TidepoolError):
    """A source is missing, unreadable, or fails a check."""


class StorageError(TidepoolError):
    """Bytes can't be written or read."""


class CorruptionError(StorageError):
    """Bytes differ from the digest that was recorded for them."""


class TrainingError(TidepoolError):
    """A training run ended without a result."""


class GateError(TidepoolError):
    """An evaluation gate was not met."""


class ExportError(TidepoolError):
    """An exported model differs from the original by more than is allowed."""


class RegistryError(TidepoolError):
    """The registry refuses an operation."""


class ModelNotFound(RegistryError):
    """No registered model, version or alias of that name."""


class NothingToRollBack(RegistryError):
    """The alias has no earlier version."""


class ClusterError(TidepoolError):
    """The cluster can't be started, reached or stopped."""


class NoCluster(ClusterError):
    """No cluster is running."""


class PortInUse(ClusterError):
    """A port that was asked for is taken."""


class JobError(TidepoolError):
    """A submitted job failed."""


class JobFailed(JobError):
    """A job ended without success; carries the exit code of its driver."""

    exit_code: int | None = None
    """As the driver ended: the job's failure is told apart by the same codes as a local one."""


class RequestError(TidepoolError):
    """An inference request can't be answered."""


class InvalidRequest(RequestError):
    """Malformed JSON, or a tensor of wrong name, shape, datatype or count."""

    told: Sequence[tuple[object, object, object]] = ()
    """Name, datatype and shape of each input, as the client has them, where it is an input that can't be read."""


class RequestTooLarge(RequestError):
    """A body over the limit."""


class Unauthenticated(RequestError):
    """No key, or one that isn't known."""


class Forbidden(RequestError):
    """A known key without the right to do this."""


class UnknownModel(RequestError):
    """No such model or version is served here."""


class Overloaded(RequestError):
    """The queue is full, or the deadline can't be met."""


class TryLater(Overloaded):
    """Overloaded, with the seconds after which a request like this one should be taken."""

    retry_after_s: float = 0.0


class ClientGone(RequestError):
    """The client went away before its answer was there."""


class NotReady(RequestError):
    """The model is still being loaded."""


class DoesNotFit(RequestError):
    """A shared model is larger than the memory of all of them together."""
