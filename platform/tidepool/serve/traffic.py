"""What becomes of a request beside being answered: which version answers it, which is asked besides, what is counted.

Where a model has a canary, a shadow or a request log, `Dataplane.infer` makes a `Visit` of each request. All that this
does on the request's path is to hash its key and to add a few numbers; comparing is the work of `comparing.Comparer`,
writing that of `requestlog.RequestLog`, each in a thread of its own.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tidepool.errors import RequestError
from tidepool.recipe import Signature
from tidepool.serve.canary import Rules, Tally
from tidepool.serve.comparing import Comparer, Comparison, Observed, compared_outputs
from tidepool.serve.masking import Mask
from tidepool.serve.protocol import InferRequest, Tensors
from tidepool.serve.requestlog import Record, RequestLog
from tidepool.serve.splits import Share, Split
from tidepool.serve.watching import News
from tidepool.settings import Settings
from tidepool.spec import RequestLogSpec, ServeSpec

if TYPE_CHECKING:
    from tidepool.serve.dataplane import LoadedVersion

CANARY, SHADOW = "canary", "shadow"
KEY = "key"
"""The request parameter that says who asks: equal values, the same version. Without it the id says so, else chance."""


class Visit:
    """One request on its way: who answers it, who is asked besides, for whom it counts, and whether it is logged."""

    __slots__ = ("_beside", "_id", "_key", "_logged", "_observed", "_request", "_traffic", "version")

    def __init__(self, traffic: Traffic, request: InferRequest, key: str) -> None:
        self._traffic, self._request, self._key = traffic, request, key
        self._id = request.id or f"{random.getrandbits(64):016x}"
        self._logged = traffic.log is not None and traffic.log.wants(self._id)
        self._beside: str | None = None
        self._observed: Observed | None = None
        self.version = traffic.champion
        """Answers."""

    def route(self, split: Split, observed: Mapping[str, Observed]) -> None:
        """Follow a split: by the request's parameter `key`, else its id, else chance."""
        key = self._request.parameters.get(KEY)
        route = split.route(self._id if key is None else str(key))
        self.version, self._beside = route.version, route.shadow
        if route.version != split.champion:
            self._observed = observed[CANARY]
        elif route.shadow is not None:
            self._observed = observed[SHADOW]

    def answered(self, chosen: LoadedVersion, rows: int, outputs: Tensors, nanoseconds: int) -> None:
        """Count the answer, have it compared and logged."""
        observed = self._observed
        if observed is not None:
            if self.version == observed.share.version:
                observed.tally.answers += 1
                observed.tally.timed += 1
                observed.tally.slow += nanoseconds > self._traffic.slow_ns
            if self._beside is not None:
                self._traffic.compare(self._request.inputs, outputs, self._beside, observed)
        if self._logged:
            self._write(chosen, rows, outputs, "ok", nanoseconds)

    def failed(self, chosen: LoadedVersion, rows: int, error: BaseException, nanoseconds: int) -> None:
        """Count a failure, unless it was the request's own, or one of having too much to do, or nobody's; log it."""
        self.failed_to_generate(error)
        if self._logged:
            self._write(chosen, rows, {}, type(error).__name__, nanoseconds)

    def generated(self) -> None:
        """Count a text; it is neither timed, compared nor logged."""
        observed = self._observed
        if observed is not None and self.version == observed.share.version:
            observed.tally.answers += 1

    def failed_to_generate(self, error: BaseException) -> None:
        """Count a failure, with the same excuses."""
        observed, excused = self._observed, not isinstance(error, Exception) or isinstance(error, RequestError)
        if observed is not None and self.version == observed.share.version and not excused:
            observed.tally.answers += 1
            observed.tally.errors += 1

    def _write(self, chosen: LoadedVersion, rows: int, outputs: Tensors, status: str, nanoseconds: int) -> None:
        seconds, traffic = nanoseconds / 1e9, self._traffic
        record = Record(
            time=time.time() - seconds,
            id=self._id,
            version=chosen.version,
            digest=chosen.digest,
            inputs=self._request.inputs,
            rows=rows,
            mask=traffic.masks[chosen.version],
            outputs=outputs,
            status=status,
            seconds=seconds,
            key=self._key,
        )
        if traffic.log is not None:
            traffic.log.offer(record)


@dataclass(frozen=True)
class Traffic:
    """What happens to the requests of one lineup. Replaced whole, never changed."""

    champion: str
    split: Split | None
    """None: the champion answers all."""
    observed: Mapping[str, Observed]
    versions: Mapping[str, LoadedVersion]
    comparer: Comparer
    outputs: Sequence[str]
    """Names of those to compare."""
    slow_ns: float
    """An answer that takes longer is a slow one."""
    log: RequestLog | None
    masks: Mapping[str, Mask]
    """Of each version, if there is a log."""

    def visit(self, request: InferRequest, version: str | None, key: str) -> Visit:
        """Send a request on its way; one that names its version goes there, and counts for none."""
        visit = Visit(self, request, key)
        if version:
            visit.version = version
        elif self.split is not None:
            visit.route(self.split, self.observed)
        return visit

    def compare(self, inputs: Tensors, given: Tensors, other: str, observed: Observed) -> None:
        """Ask another version too, later, if there is time."""
        self.comparer.offer(Comparison(inputs, given, self.versions[other].answer, self.outputs, observed))

    def to_json(self) -> dict[str, Any]:
        """What this replica has seen of canary and shadow, and what it has logged."""
        document: dict[str, Any] = {}
        if self.observed:
            document["traffic"] = {alias: observed.to_json() for alias, observed in self.observed.items()}
        if self.log is not None:
            document["request_log"] = asdict(self.log.statistics)
        return document


class TrafficControl:
    """Plans the traffic of one model in one replica, and remembers what was seen of canary and shadow."""

    def __init__(self, model: str, spec: ServeSpec, settings: Settings) -> None:
        self._model, self._compared = model, spec.compare.outputs
        self._comparer = Comparer(spec.compare.tolerance)
        self._slow_ns = math.inf if spec.canary.p99_ms is None else spec.canary.p99_ms * 1e6
        self._log = _open_log(model, spec.request_log, settings) if spec.request_log.share else None
        self._mask_key = (settings.mask_key or "").encode()
        self._decide = spec.canary.decide
        self._rules = Rules(**spec.canary.model_dump(exclude={"decide"}))
        self.observed: dict[str, Observed] = {}
        """Of `canary` and `shadow`, since each got its present share."""
        self._told: dict[str, tuple[Observed, Tally]] = {}
        self._failed: dict[str, tuple[Share, str]] = {}
        """Those of them that can't be loaded, and why."""

    def mask(self, signature: Signature) -> Mask:
        """What may be written down of a version's tensors; it hides nothing where nothing is logged.

        Raises:
            SpecError: a rule can't be kept, e.g. `hash` without TIDEPOOL_MASK_KEY.
        """
        return Mask(signature.sensitive if self._log else {}, self._mask_key)

    def plan(
        self,
        champion: str,
        shares: Mapping[str, Share],
        loaded: Mapping[str, LoadedVersion],
        failures: Mapping[str, str] = MappingProxyType({}),
    ) -> Traffic | None:
        """The traffic between the versions that are loaded; None if the champion answers all and nothing is logged.
        `failures`: why others can't be loaded.
        """
        self._failed = {a: (share, failures[share.version]) for a, share in shares.items() if share.version in failures}
        possible = {a: share for a, share in shares.items() if share.version in loaded and share.version != champion}
        kept = self.observed
        self.observed = {
            alias: kept[alias] if alias in kept and kept[alias].share == share else Observed(share)
            for alias, share in possible.items()
        }
        if not possible and self._log is None:
            return None
        return Traffic(
            champion=champion,
            split=divided(self._model, champion, possible) if possible else None,
            observed=self.observed,
            versions=loaded,
            comparer=self._comparer,
            outputs=compared_outputs(loaded[champion].signature, self._compared),
            slow_ns=self._slow_ns,
            log=self._log,
            masks={name: self.mask(version.signature) for name, version in loaded.items()},
        )

    def close(self) -> None:
        """Write what is left of the request log."""
        if self._log is not None:
            self._log.close()

    def news(self) -> list[News]:
        """What was seen of each share since this was last asked, nothing included: time alone can decide too."""
        news = []
        for alias, observed in self.observed.items():
            before = self._told.get(alias)
            earlier = before[1] if before is not None and before[0] is observed else Tally()
            now = replace(observed.tally)
            self._told[alias] = observed, now
            news.append(self._of(alias, observed.share, now.since(earlier)))
        return news + [self._of(alias, share, Tally(), failure) for alias, (share, failure) in self._failed.items()]

    def _of(self, alias: str, share: Share, tally: Tally, failure: str = "") -> News:
        return News(alias, share, tally, self._rules, self._decide and alias == CANARY, failure)


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


def _open_log(model: str, spec: RequestLogSpec, settings: Settings) -> RequestLog:
    folder = settings.storage(spec.folder, model)
    return RequestLog(folder, 100 * spec.share, kept_bytes=spec.max_mb * 1e6, rotate_s=spec.every_s)
