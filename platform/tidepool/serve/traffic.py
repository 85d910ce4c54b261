"""What becomes of a request beside being answered: which version answers it, which is asked besides, what is counted.

Where a model has a canary or a shadow, `Dataplane.infer` makes a `Visit` of each request. All that this does on the
request's path is to hash its key and to add a few numbers; comparing is the work of `comparing.Comparer`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tidepool.errors import RequestError
from tidepool.serve.canary import Rules, Tally
from tidepool.serve.comparing import Comparer, Comparison, Observed, compared_outputs
from tidepool.serve.protocol import InferRequest, Tensors
from tidepool.serve.splits import Share, Split
from tidepool.serve.watching import News
from tidepool.spec import ServeSpec

if TYPE_CHECKING:
    from tidepool.serve.dataplane import LoadedVersion

CANARY, SHADOW = "canary", "shadow"
KEY = "key"
"""The request parameter that says who asks: equal values, the same version. Without it the id says so, else chance."""


class Visit:
    """One request on its way: who answers it, who is asked besides, and for whom it counts."""

    __slots__ = ("_beside", "_observed", "_request", "_traffic", "version")

    def __init__(
        self, traffic: Traffic, request: InferRequest, version: str, beside: str | None, observed: Observed | None
    ) -> None:
        self._traffic, self._request, self._beside, self._observed = traffic, request, beside, observed
        self.version = version
        """Answers."""

    def answered(self, outputs: Tensors, nanoseconds: int) -> None:
        """Count the answer, and have it compared."""
        observed = self._observed
        if observed is None:
            return
        if self.version == observed.share.version:
            observed.tally.answers += 1
            observed.tally.slow += nanoseconds > self._traffic.slow_ns
        if self._beside is not None:
            self._traffic.compare(self._request.inputs, outputs, self._beside, observed)

    def failed(self, error: BaseException) -> None:
        """Count a failure, unless it was the request's own, or one of having too much to do, or nobody's."""
        observed, excused = self._observed, not isinstance(error, Exception) or isinstance(error, RequestError)
        if observed is not None and self.version == observed.share.version and not excused:
            observed.tally.answers += 1
            observed.tally.errors += 1


class Traffic:
    """How requests are divided between the versions of one lineup. Replaced whole, never changed."""

    def __init__(
        self,
        split: Split,
        observed: Mapping[str, Observed],
        versions: Mapping[str, LoadedVersion],
        comparer: Comparer,
        outputs: Sequence[str],
        slow_ns: float,
    ) -> None:
        """`outputs`: names of those to compare; `slow_ns`: an answer that takes longer is a slow one."""
        self._split, self._observed, self._versions = split, observed, versions
        self._comparer, self._outputs, self.slow_ns = comparer, outputs, slow_ns

    def visit(self, request: InferRequest) -> Visit:
        """Send a request on its way."""
        route = self._split.route(request_key(request))
        alias = CANARY if route.version != self._split.champion else SHADOW
        observed = self._observed[alias] if alias == CANARY or route.shadow else None
        return Visit(self, request, route.version, route.shadow, observed)

    def compare(self, inputs: Tensors, given: Tensors, other: str, observed: Observed) -> None:
        """Ask another version too, later, if there is time."""
        self._comparer.offer(Comparison(inputs, given, self._versions[other].answer, self._outputs, observed))

    def to_json(self) -> dict[str, Any]:
        """What this replica has seen of canary and shadow."""
        return {alias: observed.to_json() for alias, observed in self._observed.items()}


class TrafficControl:
    """Plans the traffic of one model in one replica, and remembers what was seen of canary and shadow."""

    def __init__(self, model: str, spec: ServeSpec) -> None:
        self._model, self._compared = model, spec.compare.outputs
        self._comparer = Comparer(spec.compare.tolerance)
        self._slow_ns = math.inf if spec.canary.p99_ms is None else spec.canary.p99_ms * 1e6
        self._decide = spec.canary.decide
        self._rules = Rules(**spec.canary.model_dump(exclude={"decide"}))
        self.observed: dict[str, Observed] = {}
        """Of `canary` and `shadow`, since each got its present share."""
        self._told: dict[str, tuple[Observed, Tally]] = {}

    def plan(self, champion: str, shares: Mapping[str, Share], loaded: Mapping[str, LoadedVersion]) -> Traffic | None:
        """The traffic between the versions that are loaded; None if the champion has all of it."""
        possible = {a: share for a, share in shares.items() if share.version in loaded and share.version != champion}
        kept = self.observed
        self.observed = {
            alias: kept[alias] if alias in kept and kept[alias].share == share else Observed(share)
            for alias, share in possible.items()
        }
        if not possible:
            return None
        outputs = compared_outputs(loaded[champion].signature, self._compared)
        split = divided(self._model, champion, possible)
        return Traffic(split, self.observed, loaded, self._comparer, outputs, self._slow_ns)

    def news(self) -> list[News]:
        """What was seen of each share since this was last asked, nothing included: time alone can decide too."""
        news = []
        for alias, observed in self.observed.items():
            before = self._told.get(alias)
            earlier = before[1] if before is not None and before[0] is observed else Tally()
            now = replace(observed.tally)
            self._told[alias] = observed, now
            decide = self._decide and alias == CANARY
            news.append(News(alias, observed.share, now.since(earlier), self._rules, decide))
        return news


def divided(model: str, champion: str, shares: Mapping[str, Share]) -> Split:
    """The split of these shares; whatever the canary answers may be compared, and whatever the shadow is asked."""
    canary, shadow = shares.get(CANARY), shares.get(SHADOW)
    return Split(
        model,
        champion,
        canary=canary.version if canary else None,
        canary_percent=canary.percent if canary else 0.0,
        shadow=shadow.version if shadow else None,
        shadow_percent=shadow.percent if shadow else 0.0,
        compare_percent=100.0,
    )


def request_key(request: InferRequest) -> str:
    """What decides where a request goes: its parameter `key`, else its id, else chance."""
    key = request.parameters.get(KEY)
    return str(key) if key is not None else request.id or f"{random.getrandbits(64):x}"
