"""Which samples a step takes: a function of (seed, epoch, position) alone, whatever the number of workers.

An epoch is one permutation of all rows. A step takes the next `global_batch_size` of it, the last step of an epoch
what is left, and every worker a strided share of those. So no resize, restart or failure repeats or skips a sample:
each is used once an epoch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]
"""Row numbers of the training rows."""


@dataclass(frozen=True)
class Place:
    """Where in the stream of samples a run is: the epoch, and how many of its samples are used."""

    epoch: int = 0
    position: int = 0


@functools.lru_cache(maxsize=2)
def order(seed: int, epoch: int, rows: int) -> Rows:
    """The permutation of the row numbers that an epoch goes through, read-only.

    Sorted by raw Philox output, which numpy keeps the same in all its versions; `Generator.permutation` it may change,
    and a run resumed after an upgrade would then repeat some rows and skip others (NEP 19).
    """
    stream = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    permutation = np.argsort(stream.random_raw(rows), kind="stable")
    permutation.flags.writeable = False
    return permutation


def step(seed: int, place: Place, rows: int, global_batch_size: int) -> tuple[Rows, Place]:
    """The row numbers of the step at `place`, over all workers together, and the place after it."""
    end = min(place.position + global_batch_size, rows)
    taken = order(seed, place.epoch, rows)[place.position : end]
    return taken, Place(place.epoch + 1) if end == rows else Place(place.epoch, end)


def share(taken: Rows, rank: int, size: int) -> Rows:
    """The part of a step's samples that worker `rank` of `size` takes: parts differ by one sample at most."""
    return taken[rank::size]


def total_steps(rows: int, global_batch_size: int, epochs: int) -> int:
    """Steps of a whole run."""
    return epochs * -(-rows // global_batch_size)


def draw(seed: int, step: int, rank: int) -> int:
    """The seed of a worker's own randomness (dropout, say) in one step, in [0, 2^64)."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
