"""A second version is asked in the background, and only as much as there is time for."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

from tidepool.recipe import Signature, TensorSpec
from tidepool.serve.comparing import MOST_WAITING, Comparer, Comparison, Observed, compared_outputs
from tidepool.serve.protocol import Tensors
from tidepool.serve.splits import Share

DIGIT = {"digit": np.array([7])}


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Whoever waits at it goes on when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def comparison(observed: Observed, rows: int = 1, gate: threading.Event | None = None) -> Comparison:
    def ask(_: Tensors) -> Tensors:
        assert gate is None or gate.wait(60)
        return DIGIT

    return Comparison({"x": np.zeros((rows, 1024))}, DIGIT, ask, ["digit"], observed)


def test_what_finds_too_many_waiting_is_dropped_at_once(gate: threading.Event) -> None:
    comparer, observed = Comparer(0.0), Observed(Share("2", 100.0, 0.0))
    for _ in range(10 * MOST_WAITING):
        comparer.offer(comparison(observed, gate=gate))
    assert observed.dropped == 9 * MOST_WAITING


def test_what_finds_too_many_bytes_waiting_is_dropped_at_once(gate: threading.Event) -> None:
    comparer, observed = Comparer(0.0), Observed(Share("2", 100.0, 0.0))
    for _ in range(10):
        comparer.offer(comparison(observed, rows=1024, gate=gate))
    assert observed.dropped == 9


def test_after_each_comparison_the_thread_rests_for_longer_than_it_worked() -> None:
    rests: list[float] = []
    rested, observed = threading.Event(), Observed(Share("2", 100.0, 0.0))

    def rest(seconds: float) -> None:
        rests.append(seconds)
        rested.set()

    Comparer(0.0, rest).offer(comparison(observed))
    assert rested.wait(60)
    assert rests[0] > 0
    assert observed.tally.compared == 1


def test_outputs_that_are_no_floats_are_compared_where_there_are_any() -> None:
    digit, share = TensorSpec("digit", "INT64", (-1,)), TensorSpec("share", "FP32", (-1,))
    assert compared_outputs(Signature((), (share, digit)), []) == ["digit"]
    assert compared_outputs(Signature((), (share,)), []) == ["share"]
    assert compared_outputs(Signature((), (share, digit)), ["share"]) == ["share"]
