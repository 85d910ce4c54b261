"""Process groups that workers form anew while they live on: one for each membership epoch, in one store that stays.

torch's default group belongs to a process and is made once. These are made directly, in a part of the store that bears
the epoch's number, so that one who comes late to an epoch that failed disturbs nobody.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed

from tidepool.train.strategies import Work

c10d: Any = torch.distributed
"""Its types name neither stores nor what the groups do."""
Store = Any
"""A `torch.distributed.Store`."""
FORM_S = 5.0
"""Whoever isn't there after so long isn't waited for: all are asked at one moment, and have nothing else to do."""
ANSWER_S = 300.0
"""Between two messages of a worker; rank 0 may write a checkpoint meanwhile. A process that ends is noticed at once."""


class Broken(Exception):
    """Another worker of the group is gone, or doesn't answer. Nothing of the state was changed."""


class Circle:
    """A group of living workers: a `strategies.Group` whose collectives raise `Broken`, and nothing else."""

    def __init__(self, group: Any) -> None:
        """`group`: a backend of torch's."""
        self._group = group

    def rank(self) -> int:
        """This worker's number, from 0."""
        return int(self._group.rank())

    def size(self) -> int:
        """The number of workers."""
        return int(self._group.size())

    def allreduce(self, tensor: torch.Tensor, /) -> Work:
        """Make `tensor` the sum of all workers', in place."""
        return _Watched(_unbroken(self._group.allreduce, tensor))

    def broadcast(self, tensor: torch.Tensor, root: int, /) -> Work:
        """Make `tensor` that of the worker `root`, in place."""
        return _Watched(_unbroken(self._group.broadcast, tensor, root))

    def abort(self) -> None:
        """Give up what is under way: NCCL's collectives raise then, those of gloo when a connection closes."""
        self._group.abort()


def opened(host: str) -> Store:
    """A store in this process, on a free port; it ends with the process."""
    return c10d.TCPStore(host, 0, is_master=True, wait_for_workers=False)


def connected(host: str, port: int) -> Store:
    """A connection to the store that another process opened.

    Raises:
        Broken: there is none.
    """
    return _unbroken(c10d.TCPStore, host, port)


def form(store: Store, epoch: int, rank: int, size: int, device: torch.device) -> Circle:
    """Meet the `size` workers of an epoch.

    Raises:
        Broken: one of them didn't come within `FORM_S`.
    """
    part = c10d.PrefixStore(f"epoch-{epoch}", store)
    return Circle(_unbroken(_nccl if device.type == "cuda" else _gloo, part, rank, size))


def _gloo(store: Store, rank: int, size: int) -> Any:
    group = c10d.ProcessGroupGloo(store, rank, size, timedelta(seconds=FORM_S))
    group.set_timeout(timedelta(seconds=ANSWER_S))
    return group


def _nccl(store: Store, rank: int, size: int) -> Any:
    """NCCL connects at the first message, which is part of forming. Not tried on several GPUs."""
    options = c10d.ProcessGroupNCCL.Options()
    options._timeout = timedelta(seconds=ANSWER_S)
    group = c10d.ProcessGroupNCCL(store, rank, size, options)
    group.allreduce(torch.zeros(1, device="cuda")).wait()
    return group


class _Watched:
    """A collective on its way that raises `Broken`."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def wait(self) -> None:
        _unbroken(self._work.wait)


def _unbroken(act: Any, *arguments: Any) -> Any:
    """What `act` returns; torch raises a RuntimeError, of no better type, for whatever is wrong with the others."""
    try:
        return act(*arguments)
    except RuntimeError as error:
        raise Broken(str(error)) from None
