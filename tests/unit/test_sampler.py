"""Every sample once an epoch, whatever happens to the number of workers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tidepool.train import sampler
from tidepool.train.sampler import Place


@settings(deadline=None)  # the first order of a length is sorted, the next ones are remembered
@given(
    rows=st.integers(1, 60),
    batch=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=30),
    seed=st.integers(0, 2**70),
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
    assert steps == sampler.total_steps(rows, batch, epochs=2)


def test_the_last_step_of_an_epoch_takes_what_is_left() -> None:
    taken, after = sampler.step(0, Place(3, 8), 10, 4)
    assert len(taken) == 2
    assert after == Place(4, 0)


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    np.testing.assert_array_equal(sampler.order(1, 2, 50), sampler.order(1, 2, 50))
    assert not np.array_equal(sampler.order(1, 2, 50), sampler.order(1, 3, 50))
    assert not np.array_equal(sampler.order(1, 2, 50), sampler.order(2, 2, 50))


def test_the_order_is_the_same_in_every_version_of_numpy() -> None:
    """A run may be resumed after an upgrade: these are the rows that the first release takes."""
    assert sampler.order(7, 1, 10).tolist() == [7, 9, 6, 1, 4, 8, 3, 2, 5, 0]


def test_shares_differ_by_at_most_one_sample() -> None:
    lengths = [len(sampler.share(np.arange(10), rank, 4)) for rank in range(4)]
    assert max(lengths) - min(lengths) == 1


def test_workers_and_steps_draw_their_own_randomness() -> None:
    drawn = {sampler.draw(seed, step, rank) for seed in range(3) for step in range(3) for rank in range(3)}
    assert len(drawn) == 27
    assert sampler.draw(0, 1, 2) == sampler.draw(0, 1, 2)
