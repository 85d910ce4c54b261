"""JSON Web Tokens (RFC 7519): callers for whom an identity provider vouches.

Signatures are checked against the keys that the provider publishes (RFC 7517), which `jwks` brings: no request ever
waits for the provider. Which algorithms a key may be used with follows from the key and never from the token, so that
neither `none` nor a public key taken for a shared secret lets anybody in (RFC 8725).
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from tidepool.errors import Forbidden, NotReady, SpecError, Unauthenticated
from tidepool.serve.auth import Key

if TYPE_CHECKING:
    from tidepool.settings import Settings

log = logging.getLogger(__name__)

ALGORITHMS = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "EC": ("ES256", "ES384", "ES512"),
    "OKP": ("EdDSA",),
}
"""Type of a published key to what it may sign with, unless the key itself names one. Shared secrets are left out."""
LEEWAY_S = 10.0
"""By which clocks may differ."""
LONGEST = 8192
"""Characters of a token."""


class Tokens:
    """Checks tokens of one issuer for one audience."""

    def __init__(self, issuer: str, audience: str, claim: str = "scope") -> None:
        """`claim` names what a token is for: `model:verb` each, `*` for any, in a list or parted by spaces."""
        self._issuer, self._audience, self._claim = issuer, audience, claim
        self._published: list[dict[str, Any]] | None = None
        self._keys: dict[str, tuple[Any, list[str]]] = {}
        """Key id to the public key and what it may sign with."""
        self.wanted = asyncio.Event()
        """Set when a token came whose key isn't known."""

    def replace(self, document: Any) -> bool:
        """Know exactly the keys of a JWKS document from now on; False if they are those known already.

        Raises:
            ValueError: it is no such document.
        """
        from jwt import PyJWK, PyJWTError

        if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
            raise ValueError("no JWKS document")
        published = [key for key in document["keys"] if isinstance(key, dict)]
        if published == self._published:
            return False
        keys = {}
        for key in published:
            kid, kind = key.get("kid"), str(key.get("kty"))
            allowed = [name for name in ALGORITHMS.get(kind, ()) if key.get("alg") in (None, name)]
            if isinstance(kid, str) and allowed and key.get("use", "sig") == "sig":
                try:
                    keys[kid] = (PyJWK(key).key, allowed)
                except PyJWTError as error:
                    log.warning("key %s of the issuer can't be used: %s", kid, error)
        self._published, self._keys = published, keys
        return True

    @property
    def known(self) -> bool:
        """Whether the issuer's keys are."""
        return self._published is not None

    def check(self, text: str, model: str, verb: str) -> Key:
        """Who the bearer of a token is, as a key for this model and verb.

        Raises:
            Unauthenticated: it isn't the issuer's, isn't for this audience, or has expired.
            Forbidden: it doesn't name this model and verb.
            NotReady: the issuer's keys couldn't be fetched yet.
        """
        claims = self._verified(text)
        scopes = claims.get(self._claim, "")
        scopes = scopes.split() if isinstance(scopes, str) else scopes if isinstance(scopes, list) else []
        if not any(f"{m}:{v}" in scopes for m in (model, "*") for v in (verb, "*")):
            raise Forbidden(
                "the token is not for this",
                seen=f"{self._claim}: {' '.join(map(str, scopes))}",
                allowed=f"{model}:{verb}",
            )
        caller = f"jwt:{claims['sub']}"
        return Key(caller, caller, "", (model,), 0.0, float(claims["exp"]) + LEEWAY_S, (verb,))

    def _verified(self, text: str) -> dict[str, Any]:
        import jwt

        if not self.known:
            raise NotReady(
                "the issuer's keys couldn't be fetched yet", seen=self._issuer, remedy="try again in a moment"
            )
        if len(text) > LONGEST:
            raise Unauthenticated("the token is too long", seen=f"{len(text)} characters", allowed=LONGEST)
        try:
            known = self._keys.get(str(jwt.get_unverified_header(text).get("kid")))
            if known is None:
                self.wanted.set()
                raise Unauthenticated("the token is signed with an unknown key", remedy="try again in some seconds")
            key, algorithms = known
            return jwt.decode(
                text,
                key,
                algorithms=algorithms,
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
        except jwt.PyJWTError as error:
            raise Unauthenticated("the token is not good", seen=str(error), remedy="get a new one") from None


def of(settings: Settings) -> Tokens:
    """As the installation's settings have it.

    Raises:
        SpecError: they don't say who issues tokens, for whom, and where the keys are.
    """
    if settings.jwt_issuer and settings.jwt_audience and settings.jwt_jwks:
        return Tokens(settings.jwt_issuer, settings.jwt_audience, settings.jwt_claim)
    raise SpecError(
        "serve.auth is jwt, but whose tokens are good isn't known",
        remedy="set TIDEPOOL_JWT_ISSUER, TIDEPOOL_JWT_AUDIENCE and TIDEPOOL_JWT_JWKS where the cluster is started",
    )
