"""Where the counts of all replicas meet: each canary and shadow has one watch, and a canary is judged by it.

The `TableKeeper` holds the watches: all replicas talk to it already, and it tells them what comes of a decision. They
are in its memory alone: if it is started anew, counting begins anew, and a decision comes later but none comes wrongly.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from tidepool.serve.canary import Decision, Rules, Tally, Verdict, Watch, judge
from tidepool.serve.splits import Share
from tidepool.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class News:
    """What one replica has seen of a canary or a shadow since it last told."""

    alias: str
    share: Share
    tally: Tally
    rules: Rules
    decide: bool
    """Whether the canary is to be promoted or ended by the rules."""
    failure: str = ""
    """Why the replica can't load its version."""


@dataclass(slots=True)
class _Watched:
    share: Share
    watch: Watch
    verdict: Verdict | None = None
    """The latest; the last one if it is over."""
    over: bool = False
    failure: str = ""


class Watches:
    """What is known of the canaries and shadows of all models."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._watched: dict[tuple[str, str], _Watched] = {}

    def see(self, model: str, news: News) -> Verdict | None:
        """Count what a replica has seen; the verdict, if the canary is to be concluded now.

        Each share is concluded once; `reopen` it if that can't be done.
        """
        key, now = (model, news.alias), self._clock()
        known = self._watched.get(key)
        if known is None or known.share.since < news.share.since:
            known = self._watched[key] = _Watched(news.share, Watch(news.share.since, news.rules.window_s))
        if known.share != news.share or known.over:
            return None  # a replica that hasn't heard of the latest shift
        known.watch.see(news.tally, now)
        known.failure = news.failure or known.failure
        if not news.decide:
            return None
        known.verdict = unloadable(news.failure) if news.failure else judge(known.watch, news.rules, now)
        known.over = known.verdict.decision is not Decision.WAIT
        return known.verdict if known.over else None

    def reopen(self, model: str, alias: str) -> None:
        """Judge a share again: what was decided couldn't be done."""
        self._watched[model, alias].over = False

    def to_json(self, model: str) -> dict[str, Any]:
        """What was seen of a model's canary and shadow, in all replicas together."""
        return {
            alias: {
                **asdict(watched.share),
                **asdict(watched.watch.total),
                "failure": watched.failure,
                "verdict": watched.verdict.to_json() if watched.verdict else None,
            }
            for (name, alias), watched in self._watched.items()
            if name == model
        }


def unloadable(failure: str) -> Verdict:
    """What becomes of a canary that a replica can't load."""
    return Verdict(Decision.ROLLBACK, f"it can't be loaded: {failure}", ())


def conclude(settings: Settings, model: str, canary: Share, verdict: Verdict) -> bool:
    """Do what was decided, in the registry and the log; False if the canary's share has changed meanwhile.

    Raises:
        RegistryError, StorageError: it can't be done.
    """
    from tidepool.registry.client import Registry
    from tidepool.registry.entities import Shift

    registry = Registry(settings.registry, settings.storage("artifacts"))
    shift = Shift(int(canary.version), canary.percent, canary.since)
    done = registry.conclude(
        model, shift, verdict.decision is Decision.PROMOTE, f"{verdict.decision}: {verdict.reason}"
    )
    if done:
        log.warning("canary %s of %s: %s", canary.version, model, json.dumps(verdict.to_json()))
    return done
