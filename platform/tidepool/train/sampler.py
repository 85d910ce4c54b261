"""Which samples a step takes: a function of (seed, epoch, position) alone, whatever the number of workers.

The order of an epoch is one permutation of all rows; a step takes its next `global_batch_size` entries (the last step
of an epoch what is left), and each worker a strided share of those. So no resize, no restart and no failure repeats or
skips a sample, and each is used once an epoch.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Place:
    """Where in the stream of samples a run is: the epoch, and how many of its samples are used."""

    epoch: int = 0
    position: int = 0


@functools.lru_cache(maxsize=2)
def order(seed: int, epoch: int, rows: int) -> Rows:
    """The permutation of `rows` row numbers that an epoch goes through."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(rows)


def step(seed: int, place: Place, rows: int, global_batch_size: int) -> tuple[Rows, Place]:
    """The row numbers of the step at `place`, over all workers together, and the place after it."""
    end = min(place.position + global_batch_size, rows)
    taken = order(seed, place.epoch, rows)[place.position : end]
    return taken, Place(place.epoch + 1, 0) if end == rows else Place(place.epoch, end)


def share(taken: Rows, rank: int, size: int) -> Rows:
    """The part of a step's samples that worker `rank` of `size` takes; parts differ by at most one sample."""
    return taken[rank::size]


def steps_per_epoch(rows: int, global_batch_size: int) -> int:
    """Steps that an epoch takes."""
    return -(-rows // global_batch_size)
