"""What a model weighs."""

from __future__ import annotations

import numpy as np
import pytest

from tidepool.serve.scale import Scale, allocated


class Thing:
    """Says when it is let go."""

    def __init__(self, said: list[str]) -> None:
        self.said = said

    def __del__(self) -> None:
        self.said.append("gone")


def test_a_thing_weighs_what_the_allocator_gave_for_it() -> None:
    made, size = Scale().weigh(lambda: np.ones(10_000_000, np.uint8), least=1)
    assert size == pytest.approx(made.nbytes if allocated() else 1, rel=0.05)


def test_where_the_allocator_says_nothing_a_thing_weighs_the_least_that_it_can() -> None:
    assert Scale(lambda: 0).weigh(lambda: "thing", least=7) == ("thing", 7)


def test_what_is_let_go_while_another_thing_is_weighed_stays_until_that_is_done() -> None:
    scale, said = Scale(), list[str]()
    scale.discard(Thing(said))
    assert said == ["gone"]

    def make() -> int:
        scale.discard(Thing(said))
        return len(said)

    assert scale.weigh(make, 1)[0] == 1
    scale.weigh(make, 1)
    assert said == ["gone", "gone"]
