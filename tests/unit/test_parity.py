"""A version that doesn't answer as the trained network did is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tidepool.artifact import open_artifact
from tidepool.errors import ExportError
from tidepool.serve import parity


def test_equal_answers_pass(make_artifact: Callable[..., Path]) -> None:
    assert parity.check(open_artifact(str(make_artifact())), tolerance=1e-6) <= 1e-6


def test_a_shifted_answer_is_refused(make_artifact: Callable[..., Path]) -> None:
    artifact = open_artifact(str(make_artifact(golden_shift=0.01)))
    with pytest.raises(ExportError, match=r"probabilities.*0\.01.*parity_tolerance"):
        parity.check(artifact, tolerance=0.005)


def test_discrete_outputs_count_the_rows_that_differ() -> None:
    assert parity.difference(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 0.25
    assert parity.difference(np.zeros((2, 2)), np.zeros((2, 3))) == float("inf")


def test_text_comes_back_as_the_bytes_that_the_model_gave() -> None:
    assert parity.values("BYTES", ["é", "b"], [2, 1]).tolist() == [["é".encode()], [b"b"]]
