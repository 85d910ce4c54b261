"""When the server is ready."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tidepool.serve.readiness import KEPT_S, Readiness, all_answer


def application(status: str, *running: int) -> Any:
    """An application whose deployments have so many replicas that answer."""
    deployments = {str(i): SimpleNamespace(replica_states={"RUNNING": count}) for i, count in enumerate(running)}
    return SimpleNamespace(status=status, deployments=deployments)


@pytest.mark.parametrize(
    ("applications", "ready"),
    [
        ([application("RUNNING", 1), application("RUNNING", 2)], True),
        ([application("RUNNING", 1), application("DEPLOYING", 0)], False),
        ([application("RUNNING", 1), application("DEPLOYING", 1, 0)], False),
        ([application("RUNNING", 1), application("DEPLOY_FAILED")], False),
        ([application("DEPLOYING", 1)], True),  # a rollout: the replicas of before answer
        ([application("RUNNING", 0)], True),  # at rest, until it is asked
        ([application("RUNNING", 1), application("DELETING", 0)], True),
        ([], False),
    ],
)
def test_a_server_is_ready_when_all_that_it_serves_is(applications: list[Any], ready: bool) -> None:
    assert all_answer(applications) is ready


def test_serve_is_asked_once_in_a_while_whoever_asks_how_often() -> None:
    now, looks = 0.0, iter([True, False])
    readiness = Readiness(lambda: next(looks), clock=lambda: now)
    assert [readiness() for _ in range(9)] == [True] * 9
    now = KEPT_S
    assert not readiness()


def test_who_can_not_tell_is_not_ready() -> None:
    def look() -> bool:
        raise ConnectionError

    assert not Readiness(look)()
