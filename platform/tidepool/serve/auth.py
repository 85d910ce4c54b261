"""API keys: who may do what, and how often. Checked in the replica, because every replica has a port of its own.

A key is `tp_<id>_<secret>`, 160 random bits; only its sha256 is stored. With so many bits a slow hash adds nothing,
and looking the hash up tells an attacker nothing about the key. What was let in once is remembered by its text, in
memory alone, so that a request costs a look-up and no hash.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidepool import storage
from tidepool.errors import Forbidden, SpecError, StorageError, Unauthenticated
from tidepool.serve.limits import Limit, Limits

if TYPE_CHECKING:
    from tidepool.serve.tokens import Tokens

ANY_MODEL = "*"

INFER, EXPLAIN, READ = "infer", "explain", "read"
VERBS = (INFER, EXPLAIN, READ)
"""What a key may be for: answers, explanations, and a model's metadata and statistics."""
SEND = "send it as 'Authorization: Bearer <key>'"
MAKE = "`tidepool keys create NAME` makes one"
MOST_REMEMBERED = 4096
"""Of those that were let in: the text, model and verb of each."""

DAY_S = 86_400.0
LONGEST_S = 36_500 * DAY_S


@dataclass(frozen=True)
class Key:
    """A stored key: everything but the secret."""

    id: str
    name: str
    sha256: str
    models: tuple[str, ...]
    """Models that it opens; `*` for all."""
    created: float
    expires: float | None
    """Seconds since the epoch, or None for never."""
    verbs: tuple[str, ...] = VERBS
    """What it is for, of each of its models."""
    limit: Limit | None = None
    """Of all its requests together, but for those that read."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Key:
        """From a line of the keys file; those of older ones have no verbs and no limit."""
        limit = document.get("limit")
        known = {**document, "models": tuple(document["models"]), "verbs": tuple(document.get("verbs", VERBS))}
        return cls(**{**known, "limit": None if limit is None else Limit(**limit)})


class KeyFile:
    """The keys of one installation, in one JSON file that its owner alone can read."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock

    def load(self) -> list[Key]:
        """All keys, oldest first.

        Raises:
            StorageError: the file is there but can't be read as keys.
        """
        try:
            return [Key.from_json(entry) for entry in json.loads(self._path.read_text())]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SpecError) as error:
            remedy = "put a good copy there, or remove it and make new keys"
            raise StorageError("the keys file can't be read", seen=f"{self._path}: {error}", remedy=remedy) from error

    def create(
        self,
        name: str,
        models: Iterable[str] = (ANY_MODEL,),
        ttl_s: float | None = None,
        verbs: Iterable[str] = VERBS,
        limit: Limit | None = None,
    ) -> str:
        """Make a key and return it: the only time that it can be seen.

        Raises:
            SpecError: it would never be good, or for longer than a century; or there is no such verb.
        """
        verbs = tuple(verbs)
        if unknown := [verb for verb in verbs if verb not in VERBS]:
            raise SpecError("no such verb", seen=", ".join(unknown), allowed=", ".join(VERBS))
        if ttl_s is not None and not 0 < ttl_s <= LONGEST_S:
            raise SpecError("no such time for a key to last", seen=f"{ttl_s / DAY_S:g} days", allowed="0 to 36500 days")
        now = self._clock()
        id_, secret = secrets.token_hex(4), secrets.token_hex(20)
        text = f"tp_{id_}_{secret}"
        key = Key(id_, name, digest(text), tuple(models), now, None if ttl_s is None else now + ttl_s, verbs, limit)
        with storage.alone(self._path):
            self._write([*self.load(), key])
        return text

    def revoke(self, id_: str) -> Key:
        """Remove a key.

        Raises:
            SpecError: no key of that id.
        """
        with storage.alone(self._path):
            keys = self.load()
            found = [key for key in keys if key.id == id_]
            if not found:
                allowed = ", ".join(key.id for key in keys) or "none exist"
                raise SpecError(
                    "no such key", seen=id_, allowed=allowed, remedy="`tidepool keys list` shows whose they are"
                )
            self._write([key for key in keys if key.id != id_])
        return found[0]

    def _write(self, keys: list[Key]) -> None:
        storage.write_json(self._path, [asdict(key) for key in keys], mode=0o600)


class Keyring:
    """The keys that a replica knows, replaced whole when they change; and tokens, if it takes them."""

    def __init__(
        self, keys: Iterable[Key] = (), clock: Callable[[], float] = time.time, tokens: Tokens | None = None
    ) -> None:
        self._clock, self._tokens = clock, tokens
        self.limits = Limits(clock)
        self._let_in: dict[tuple[str, str, str], Key] = {}
        self.replace(keys)

    def replace(self, keys: Iterable[Key]) -> None:
        """Know exactly these keys from now on."""
        self._by_digest = {key.sha256: key for key in keys}
        self.forget()

    def forget(self) -> None:
        """Look at everybody anew."""
        self._let_in.clear()

    def check(self, sent: str, model: str, verb: str) -> Key:
        """The key or token that was `sent`, with or without `Bearer`, if it opens `model` for `verb` of `VERBS`.

        Raises:
            Unauthenticated: no key, an unknown, revoked or expired one, or another scheme's.
            Forbidden: the key doesn't open this model, or not for this.
            NotReady: it is a token, and the issuer's keys aren't there yet.
        """
        asked = (sent, model, verb)
        key = self._let_in.get(asked) or self._let_anew(asked)
        if key.expires is not None and key.expires < self._clock():
            raise Unauthenticated("the API key or token has expired", seen=key.id, remedy="get a new one")
        return key

    def charge(self, key: Key) -> None:
        """Count a request against the key's limit: one that is let in, and doesn't just read.

        Raises:
            TryLater: it has asked too often.
        """
        if key.limit is not None:
            self.limits.check(key.id, key.limit)

    def _let_anew(self, asked: tuple[str, str, str]) -> Key:
        sent, model, verb = asked
        text = _credentials(sent)
        key = self._known(text, model, verb)
        if sent not in (text, f"Bearer {text}"):
            return key  # a key may be written in more ways than there is room for
        if len(self._let_in) >= MOST_REMEMBERED:
            del self._let_in[next(iter(self._let_in))]
        self._let_in[asked] = key
        return key

    def _known(self, text: str, model: str, verb: str) -> Key:
        if not text:
            raise Unauthenticated("an API key is needed", remedy=f"{SEND}; {MAKE}")
        if self._tokens is not None and text.count(".") == 2:
            return self._tokens.check(text, model, verb)
        key = self._by_digest.get(digest(text))
        if key is None:
            raise Unauthenticated("the API key is not known", seen=f"{text[:6]}...", remedy=f"check it, or {MAKE}")
        if ANY_MODEL not in key.models and model not in key.models:
            raise Forbidden("the API key doesn't open this model", seen=model, allowed=", ".join(key.models))
        if verb not in key.verbs:
            raise Forbidden("the API key is not for this", seen=verb, allowed=", ".join(key.verbs))
        return key


def _credentials(sent: str) -> str:
    """A header's value without its scheme, whose case doesn't matter (RFC 9110, 11.1)."""
    scheme, blank, text = sent.strip().partition(" ")
    if scheme.lower() == "bearer":
        return text.lstrip()
    if blank and scheme.isalpha():  # no key is of letters alone
        raise Unauthenticated("not the way to send an API key", seen=scheme[:20], allowed="Bearer", remedy=SEND)
    return sent.strip()


def digest(text: str) -> str:
    """What is stored of a key."""
    return hashlib.sha256(text.encode()).hexdigest()
