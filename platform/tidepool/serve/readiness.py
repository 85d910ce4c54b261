"""Whether the server is ready, as the Open Inference Protocol means it: all that it serves would be answered."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from tidepool.serve import versions

if TYPE_CHECKING:
    from ray.serve.schema import ApplicationStatusOverview

log = logging.getLogger(__name__)

KEPT_S = 0.5
"""Seconds for which what was found holds: whoever asks needs no key, and asks Serve's controller."""
PATIENCE_S = 5.0
RUNNING = "RUNNING"
"""Serve's word for an application with as many replicas as it wants, and for a replica that answers."""
LEAVING = "DELETING"


class Readiness:
    """Says whether the server is ready; from any thread."""

    def __init__(self, look: Callable[[], bool], clock: Callable[[], float] = time.monotonic) -> None:
        self._look, self._clock = look, clock
        self._alone = threading.Lock()
        self._until, self._is_ready = -KEPT_S, False

    def __call__(self) -> bool:
        """Whether it was ready within the last `KEPT_S`."""
        with self._alone:
            if self._clock() >= self._until:
                self._is_ready = self._found()
                self._until = self._clock() + KEPT_S
            return self._is_ready

    def _found(self) -> bool:
        try:
            return self._look()
        except Exception as error:  # whatever it is: who can't tell isn't ready
            log.warning("whether the server is ready can't be told: %s", error)
            return False


def answers(application: ApplicationStatusOverview) -> bool:
    """Whether an application answers, in the middle of a rollout too; one that is on its way out needn't."""
    if application.status in (RUNNING, LEAVING):
        return True
    deployments = application.deployments.values()
    return bool(deployments) and all(deployment.replica_states.get(RUNNING) for deployment in deployments)


def all_answer(applications: Iterable[ApplicationStatusOverview]) -> bool:
    """Whether there are some, and each answers."""
    states = [answers(application) for application in applications]
    return bool(states) and all(states)


def _look() -> bool:
    import ray
    from ray import serve

    ray.get(versions.keeper().wait.remote(versions.KEYS), timeout=PATIENCE_S)  # raises where there are no good keys
    return all_answer(serve.status().applications.values())


is_ready = Readiness(_look)
"""Of the cluster that this process belongs to."""
