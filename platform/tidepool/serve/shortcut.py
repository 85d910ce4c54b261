"""The short way from a replica's socket to its model.

Serve's own way makes ids, contexts, two tasks and a handful of counters for each request: twice what both codecs and a
small model take (docs/decisions). `Shortcut` is the outermost middleware of the replica's HTTP server, where Serve lets
a deployment put some (`RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, set in `cluster.environment`): requests below a
model's own path go straight to it, everything else (health checks, routes) on to Serve.

Serve's autoscaler doesn't see these requests: `vitals` tells it how busy the replica is. The limits on requests are the
batcher's. Everywhere but in a replica's own server no model is published, and everything goes on to Serve.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import uvicorn.config
from starlette.middleware import Middleware

from tidepool.cluster import loopback
from tidepool.serve.neighbour import Neighbour

if TYPE_CHECKING:
    from tidepool.serve.body import Receive
    from tidepool.serve.rest import Asgi, ModelApp, Scope, Send

_PUBLISHED: dict[str, ModelApp] = {}
"""The models of this process by the path that each answers below: none, or in a replica its own."""
DEPTH = 3
"""Names in the path of a model: `/v2/models/digits`."""


def publish(prefix: str, app: ModelApp) -> None:
    """Let this process's HTTP server answer what is below `prefix` with `app`."""
    _PUBLISHED[prefix] = app


def unpublish(prefix: str) -> None:
    """Let it answer there no more."""
    _PUBLISHED.pop(prefix, None)


def published(prefix: str) -> ModelApp | None:
    """The model of this process that answers below `prefix`."""
    return _PUBLISHED.get(prefix)


class Shortcut:
    """ASGI middleware: the published model for what is below its prefix, `app` for all else."""

    def __init__(self, app: Asgi) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "http":
            prefix = "/".join(scope["path"].split("/", DEPTH + 1)[: DEPTH + 1])
            model = _PUBLISHED.get(prefix)
            if model is not None:
                scope["root_path"] = prefix
                return await model(scope, receive, send)
        return await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve asks for, before it opens the ports of a replica or of a proxy."""
    loopback.bind_grpc()
    uvicorn.config.HTTP_PROTOCOLS["auto"] = "tidepool.serve.lane:Lane"
    if os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        uvicorn.Server = Neighbour  # type: ignore[misc]
    return [Middleware(Shortcut)]
