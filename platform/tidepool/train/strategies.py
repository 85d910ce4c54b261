"""How workers share a model. `ddp`: each holds all of it and sees a share of the samples of a step.

The group is an argument, and may be another one after any step (`regroup`): torch's own DDP wrapper keeps the group
that it was made with, and divides by the number of workers where shares of unequal size need the number of samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

BUCKET_BYTES = 25 << 20
"""Gradients travel together up to this size: fewer messages, and no copy of the whole model."""


class Work(Protocol):
    """A collective on its way."""

    def wait(self) -> Any:
        """Block until it is done; raises if another worker is gone."""


class Group(Protocol):
    """What is asked of a torch process group, or of one of its backends."""

    def rank(self) -> int:
        """This worker's number, from 0."""

    def size(self) -> int:
        """The number of workers."""

    def allreduce(self, tensor: torch.Tensor, /) -> Work:
        """Make `tensor` the sum of all workers', in place."""

    def broadcast(self, tensor: torch.Tensor, root: int, /) -> Work:
        """Make `tensor` that of the worker `root`, in place."""


class DataParallel:
    """Data parallelism over a process group; a worker without one is by itself.

    The gradient of a step is the sum over all workers of what `backward` left in theirs. If each scales the loss of its
    share by samples in the share over samples in the step, that is the gradient of the mean over the whole step: exact
    for unequal shares, and for every number of workers the same up to the order of additions.
    """

    def __init__(self, network: torch.nn.Module, group: Group | None = None) -> None:
        self._network, self._group = network, group

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self._group.rank() if self._group else 0

    @property
    def size(self) -> int:
        """The number of workers."""
        return self._group.size() if self._group else 1

    def regroup(self, group: Group | None) -> None:
        """Work with these others from the next step on."""
        self._group = group

    def reduce(self, *extra: float) -> list[float]:
        """Sum the gradients over all workers, in place; returns the sums of `extra`, which travel along.

        A parameter without a gradient counts as zero, so that unused ones are treated alike at every size.
        """
        gradients = [_gradient(parameter) for parameter in self._network.parameters() if parameter.requires_grad]
        sums = torch.tensor(extra, dtype=torch.float64, device=gradients[0].device)
        if self._group is not None:
            buckets = [(bucket, torch.cat([g.reshape(-1) for g in bucket])) for bucket in _buckets(gradients)]
            for work in [self._group.allreduce(flat) for flat in (sums, *(flat for _, flat in buckets))]:
                work.wait()
            for bucket, flat in buckets:
                for gradient, part in zip(bucket, flat.split_with_sizes([g.numel() for g in bucket]), strict=True):
                    gradient.copy_(part.view_as(gradient))
        return [float(value) for value in sums]

    def align(self) -> None:
        """Give every worker rank 0's buffers (running means, say), in place."""
        if self._group is not None:
            for work in [self._group.broadcast(buffer, 0) for buffer in self._network.buffers()]:
                work.wait()


STRATEGIES = {"ddp": DataParallel}
"""`train.strategy` of the spec to its class."""


def from_first(state: dict[str, Any], group: Group | None, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Rank 0's `state` (tensors, numbers and strings, in dicts and lists) on every worker, its tensors on the CPU.

    `device` is where the group's messages live.
    """
    if group is None:
        return state
    packed = io.BytesIO()
    if group.rank() == 0:
        torch.save(state, packed)
    length = torch.tensor([packed.tell()], device=device)
    group.broadcast(length, 0).wait()
    content = torch.zeros(int(length), dtype=torch.uint8, device=device)
    if group.rank() == 0:
        content.copy_(torch.frombuffer(packed.getbuffer(), dtype=torch.uint8))
    group.broadcast(content, 0).wait()
    received: dict[str, Any] = torch.load(
        io.BytesIO(content.cpu().numpy().tobytes()), map_location="cpu", weights_only=True
    )
    return received


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    """Neighbours of one dtype, up to `BUCKET_BYTES`; a larger one by itself."""
    bucket: list[torch.Tensor] = []
    held = 0
    for gradient in gradients:
        if bucket and (held + gradient.nbytes > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += gradient.nbytes
    if bucket:
        yield bucket
