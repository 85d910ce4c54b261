"""How long an idle engine waits for those it has just answered.

Clients that ask again as soon as they have their answer come back shortly after one another. Were the engine to start
with those who wait already, two groups would take turns ever after, each batch half as large as it could be. So it
waits for the others, if they are wont to be back soon: before their joining has paid for the wait, and within half the
time of the run that waits. Where requests come from many independent clients as many take longer to come, and a lone
client has nobody to wait for: then nobody waits.
"""

from __future__ import annotations

import math

from tidepool.serve.costs import Costs

SHORTEST_WAIT_S = 1e-4
"""Waits that are not worth a timer."""
MEAN_WEIGHT = 0.125
"""Weight of the latest return in the running mean."""


class Patience:
    """Learns how long it takes until as many requests have come as were answered last."""

    def __init__(self, slo_s: float) -> None:
        self._slo_s = slo_s
        self._answered, self._returned = 0, 0
        self._since = -math.inf
        self._return_s = slo_s

    def answered(self, requests: int, now: float) -> None:
        """A batch of so many requests was answered."""
        if self._returned < self._answered:
            self._learn(2 * (now - self._since))  # the last ones aren't all back: it takes longer than until now
        self._answered, self._returned, self._since = requests, 0, now

    def arrived(self, now: float) -> None:
        """A request has come."""
        self._returned += 1
        if self._returned == self._answered:
            self._learn(now - self._since)

    def wait_s(self, now: float, requests: int, size: int, limit: int, costs: Costs) -> float:
        """Seconds still to wait while so many `requests` of together `size` are there, and a batch may be `limit`."""
        missing = self._answered - self._returned
        if missing <= 0 or size >= limit:
            return 0.0
        more = min(missing * size // requests, limit - size)
        slack_s = self._slo_s - costs.excess_s - 2 * costs.expected(size + more)
        # Those who wait pay with their time: no more than half of what their run takes.
        gain_s = min(costs.saving(size, more), costs.expected(size) / 2)
        return worth(now - self._since, self._return_s, gain_s, slack_s)

    def _learn(self, seconds: float) -> None:
        self._return_s += MEAN_WEIGHT * (min(seconds, self._slo_s) - self._return_s)


def worth(since_s: float, return_s: float, gain_s: float, slack_s: float) -> float:
    """Seconds that waiting is still worth, `since_s` after the answers went out.

    The others take `return_s` to return, on average: so at most twice that. It is worth it if what is left of it is
    less than what is gained by running them together with those who wait (`gain_s`). `slack_s` is what the latency
    objective leaves, from the answers on.
    """
    wait_s = min(2 * return_s - since_s, gain_s, slack_s - since_s)
    return wait_s if return_s - since_s < gain_s and wait_s > SHORTEST_WAIT_S else 0.0
