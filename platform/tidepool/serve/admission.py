"""Who is let into a replica: its keyring, kept up to date by what the keeper of versions and that of tallies tell."""

from __future__ import annotations

import asyncio
from typing import Any

from tidepool.serve import jwks, tallies, tokens, versions
from tidepool.serve.auth import Key, Keyring
from tidepool.settings import Settings


class Admission:
    """The keyring for one way of `serve.auth`."""

    def __init__(self, auth: str) -> None:
        """
        Raises:
            SpecError: it takes tokens, and the settings don't say whose.
        """
        self._tokens = tokens.of(Settings()) if auth == "jwt" else None
        self.keyring = None if auth == "none" else Keyring(tokens=self._tokens)
        """None: everybody is let in."""
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Learn the keys, and follow them from now on."""
        if self.keyring is None:
            return
        revision, value = await versions.keeper().wait.remote(versions.KEYS)
        await self._apply(value)
        self._follow(versions.follow(versions.KEYS, self._apply, revision))
        self._follow(tallies.share(self.keyring.limits, tallies.teller()))
        if self._tokens is not None:
            published = (self._tokens, str(Settings().jwt_jwks), self.keyring.forget)
            await jwks.refresh(*published)
            self._follow(jwks.follow(*published))

    def _follow(self, following: Any) -> None:
        self._tasks.append(asyncio.create_task(following))

    async def _apply(self, value: list[dict[str, Any]]) -> None:
        assert self.keyring is not None
        self.keyring.replace(Key.from_json(entry) for entry in value)
