"""The application at `/`: what a server says of itself, and `/docs`.

Models have applications at longer prefixes, of their own or one for all shared ones; whatever reaches this one below
`/v2/models/` names a model that isn't served.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import JSONResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles

from tidepool import __version__
from tidepool.errors import TidepoolError, UnknownModel
from tidepool.serve import openapi, protocol, triton, versions
from tidepool.serve.body import read_body
from tidepool.serve.readiness import RUNNING, is_ready
from tidepool.serve.rest import error_body, status_of
from tidepool.serve.triton import Index

APPLICATION, SHARED_APPLICATION = "gateway", "_shared"
"""No model can have the latter's name."""
MODEL_PREFIX = "/v2/models/"
LONGEST_QUESTION = 1024
"""Bytes of a request for the index, for which nobody needs a key."""


def build(served: Callable[[], Index] | None = None, readiness: Callable[[], bool] | None = None) -> FastAPI:
    """The FastAPI application; `served` lists the versions in service, `readiness` says whether the server is ready, by
    default as Serve knows it.
    """
    from swagger_ui_bundle import swagger_ui_path

    served, readiness = served or served_models, readiness or is_ready
    app = FastAPI(title="tidepool", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/docs/assets", StaticFiles(directory=swagger_ui_path))

    @app.get("/")
    def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/docs")
    def docs() -> Response:
        # The assets come from this server: no page of ours loads code from elsewhere.
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="tidepool",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/docs/assets/favicon-32x32.png",
        )

    @app.get("/openapi.json")
    def schema() -> dict[str, Any]:
        return openapi.document()

    @app.get("/v2")
    def metadata() -> dict[str, Any]:
        return {"name": protocol.SERVER_NAME, "version": __version__, "extensions": list(protocol.EXTENSIONS)}

    @app.get("/v2/health/live")
    def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        found = await asyncio.to_thread(readiness)
        return JSONResponse({"ready": found}, 200 if found else 503)

    @app.post("/v2/repository/index")
    async def index(request: Request) -> Index:
        body = await read_body(dict(request.headers.raw), request.receive, LONGEST_QUESTION)
        ready_only = triton.wants_ready_only(body)
        return triton.listed(await asyncio.to_thread(served), ready_only)

    _explain_failures(app, served)
    return app


def _explain_failures(app: FastAPI, served: Callable[[], Index]) -> None:
    """Give every failure the protocol's one shape."""

    @app.exception_handler(404)
    async def unknown(request: Request, error: Any) -> Response:
        path = request.url.path
        if path.startswith(MODEL_PREFIX):
            status, body = await no_such_model(path.removeprefix(MODEL_PREFIX).split("/")[0], served)
            return Response(body, status, media_type="application/json")
        error = UnknownModel("no such path", seen=path, allowed="see /docs")
        return Response(error_body(str(error)), status_of(error), media_type="application/json")

    @app.exception_handler(405)
    async def wrong_method(request: Request, error: Any) -> Response:
        body = error_body(f"method not allowed. Seen: {request.method}.")
        return Response(body, 405, dict(error.headers or {}), media_type="application/json")

    @app.exception_handler(TidepoolError)
    async def refused(_: Request, error: TidepoolError) -> Response:
        return Response(error_body(str(error)), status_of(error), media_type="application/json")

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        body = error_body(f"{request.url.path} failed: {type(error).__name__}")
        return Response(body, 500, media_type="application/json")


async def no_such_model(name: str, served: Callable[[], Index]) -> tuple[int, bytes]:
    """Status and body of the answer about a model that isn't among those that `served` lists."""
    models = ", ".join(dict.fromkeys(entry["name"] for entry in await asyncio.to_thread(served)))
    error = UnknownModel("no such model is served", seen=name, allowed=models or "none is deployed")
    return status_of(error), error_body(str(error))


def served_models() -> Index:
    """The repository index: every model with an application or a share of one, its versions, and its state."""
    from ray import serve

    found: Index = []
    for name, status in serve.status().applications.items():
        # Serve's own message names files and machines: it is for whoever runs the server, and the index for everybody.
        state, reason = (triton.READY, "") if status.status == RUNNING else (triton.UNAVAILABLE, status.status.value)
        models = _topic(versions.SHARED, {}) if name == SHARED_APPLICATION else [name]
        for model in models:
            if model != APPLICATION:
                entries = _topic(f"model:{model}", {"entries": []})["entries"]
                found += triton.index(model, [entry["version"] for entry in entries], state, reason)
    return found


def _topic(topic: str, otherwise: Any) -> Any:
    """What the keeper of versions has of a topic; `otherwise` if that can't be had."""
    import ray

    try:
        _, value = ray.get(versions.keeper().wait.remote(topic))
    except TidepoolError:
        return otherwise
    return value
