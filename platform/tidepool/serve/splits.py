"""Who is answered by which version: pure routing, the same on every replica.

A request's place is a number in [0, 100) that only its key and a salt decide. A canary of p percent answers the
places below p: whoever is in stays in while p grows, and each canary, by its own salt, picks other people.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from tidepool.errors import SpecError


def place(key: str, salt: str) -> float:
    """Where `key` falls in [0, 100), uniformly and always alike."""
    digest = hashlib.blake2b(key.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100


@dataclass(frozen=True)
class Share:
    """What a canary or a shadow has of a model's traffic, since when (seconds since the epoch)."""

    version: str
    percent: float
    since: float


@dataclass(frozen=True, slots=True)
class Route:
    """What becomes of one request."""

    version: str
    """Answers."""
    shadow: str | None = None
    """Is asked too; its answer is compared and never returned."""


@dataclass(frozen=True, slots=True)
class Split:
    """How the traffic of a model is divided between versions."""

    model: str
    """Its name salts the places: another model's canary picks other people."""
    champion: str
    canary: str | None = None
    canary_percent: float = 0.0
    shadow: str | None = None
    shadow_percent: float = 100.0
    compare_percent: float = 0.0
    """Of the requests that the canary answers, those that the champion is asked too, to compare."""

    def __post_init__(self) -> None:
        for name in ("canary_percent", "shadow_percent", "compare_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise SpecError(f"{name} is no percentage", seen=getattr(self, name), allowed="0 to 100")

    def route(self, key: str) -> Route:
        """Where the request with this key goes: one customer, one session or one request, as the caller chose."""
        if self.canary is not None and place(key, self._salt("canary", self.canary)) < self.canary_percent:
            compared = place(key, self._salt("compare", self.canary)) < self.compare_percent
            return Route(self.canary, self.champion if compared else None)
        if self.shadow is not None and place(key, self._salt("shadow", self.shadow)) < self.shadow_percent:
            return Route(self.champion, self.shadow)
        return Route(self.champion)

    def _salt(self, purpose: str, version: str) -> str:
        return f"{purpose} {version} {self.model}"
