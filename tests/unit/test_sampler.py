"""Every sample once an epoch, whatever happens to the number of workers."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tidepool.train import sampler
from tidepool.train.sampler import Place


@given(
    rows=st.integers(1, 60),
    batch=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=30),
    seed=st.integers(0, 5),
)
def test_any_sequence_of_sizes_uses_each_sample_once_an_epoch(
    rows: int, batch: int, sizes: list[int], seed: int
) -> None:
    place, used, steps = Place(), [], 0
    while place.epoch < 2:
        taken, after = sampler.step(seed, place, rows, batch)
        size = sizes[steps % len(sizes)]
        shares = [sampler.share(taken, rank, size) for rank in range(size)]
        assert sorted(np.concatenate(shares)) == sorted(taken)
        used += [(place.epoch, int(row)) for share in shares for row in share]
        place, steps = after, steps + 1
    assert sorted(used) == [(epoch, row) for epoch in range(2) for row in range(rows)]
    assert steps == 2 * sampler.steps_per_epoch(rows, batch)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    np.testing.assert_array_equal(sampler.order(1, 2, 50), sampler.order(1, 2, 50))
    assert not np.array_equal(sampler.order(1, 2, 50), sampler.order(1, 3, 50))
    assert not np.array_equal(sampler.order(1, 2, 50), sampler.order(2, 2, 50))


def test_shares_differ_by_at_most_one_sample() -> None:
    taken = np.arange(10)
    lengths = [len(sampler.share(taken, rank, 4)) for rank in range(4)]
    assert max(lengths) - min(lengths) == 1
