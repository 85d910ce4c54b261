"""The middleware in front of a replica: what goes to the model, and what on to Serve."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tidepool.serve import shortcut


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Who was asked, and the root path that they saw."""
    calls: list[tuple[str, str]] = []

    def app(name: str) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            calls.append((name, scope.get("root_path", "")))

        return answer

    monkeypatch.setattr(shortcut, "_PUBLISHED", {})
    shortcut.publish("/v2/models/digits", app("model"))
    way = shortcut.middlewares()[0].cls(app("serve"))
    for path in ("/v2/models/digits", "/v2/models/digits/infer", "/v2/models/digits-2/infer", "/-/healthz", "/"):
        asyncio.run(way({"type": "http", "path": path}, None, None))
    asyncio.run(way({"type": "websocket", "path": "/v2/models/digits"}, None, None))
    return calls


def test_only_what_is_below_the_models_own_path_goes_to_it(seen: list[tuple[str, str]]) -> None:
    assert [name for name, _ in seen] == ["model", "model", "serve", "serve", "serve", "serve"]


def test_the_model_sees_its_own_root_path(seen: list[tuple[str, str]]) -> None:
    assert [root for _, root in seen[:3]] == ["/v2/models/digits", "/v2/models/digits", ""]


def test_a_model_that_is_taken_away_answers_no_more() -> None:
    shortcut.publish("/v2/models/iris", Any)  # type: ignore[arg-type]
    shortcut.unpublish("/v2/models/iris")
    assert shortcut.published("/v2/models/iris") is None
