"""How workers share a model. `ddp`: each holds all of it, gradients are averaged over the samples of a step.

A worker's group may change between two steps: `join` synchronises the newcomers with rank 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

BUCKET_BYTES = 25 << 20
"""Gradients travel together up to this size: fewer messages, and no copy of the whole model."""


class DataParallel:
    """Data parallelism over a torch process group; `group` None is a worker by itself.

    The gradient of a step is the sum over all workers of the gradients of their samples' summed loss, over the number
    of samples: exact for unequal shares, and equal for every number of workers up to the order of additions.
    """

    def __init__(self, network: torch.nn.Module, group: dist.ProcessGroup | None) -> None:
        self._network, self._group = network, group

    @property
    def rank(self) -> int:
        """This worker's number, from 0."""
        return self._group.rank() if self._group else 0

    @property
    def size(self) -> int:
        """The number of workers."""
        return self._group.size() if self._group else 1

    def regroup(self, group: dist.ProcessGroup | None) -> None:
        """Work with these others from now on."""
        self._group = group

    def reduce(self, *extra: float) -> list[float]:
        """Sum the gradients over all workers, in place; returns the sums of `extra`, which travel along."""
        parameters = [p for p in self._network.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        sums = torch.tensor(extra, dtype=torch.float64, device=parameters[0].device)
        if self._group is None:
            return [float(value) for value in sums]
        works = [self._group.allreduce([sums])]
        buckets = []
        for bucket in _buckets([p.grad for p in parameters if p.grad is not None]):
            flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
            buckets.append((bucket, flat))
            works.append(self._group.allreduce([flat]))
        for work in works:
            work.wait()
        for bucket, flat in buckets:
            for gradient, part in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(part.view_as(gradient))
        return [float(value) for value in sums]

    def broadcast(self, tensors: Iterator[torch.Tensor]) -> None:
        """Give every worker rank 0's values, in place."""
        if self._group is not None:
            works = [self._group.broadcast([tensor], 0) for tensor in tensors]
            for work in works:
                work.wait()


def _buckets(gradients: list[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    held = 0
    for gradient in gradients:
        size = gradient.numel() * gradient.element_size()
        if bucket and (held + size > BUCKET_BYTES or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket, held = [], 0
        bucket.append(gradient)
        held += size
    if bucket:
        yield bucket


STRATEGIES: dict[str, Any] = {"ddp": DataParallel}
