"""The CLI's HTTP client: one request, with the CLI's own key."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Self

import httpx

from tidepool.cluster.local import running, stay_here
from tidepool.errors import ClusterError, RequestError
from tidepool.settings import Settings


class Client:
    """Talks to the local cluster's front end over one connection; a context manager.

    Raises:
        ClusterError: the shell is set to another cluster, or none runs here.
    """

    def __init__(self, settings: Settings) -> None:
        remedy = "ask that one with curl, at its front end's URL; or unset it for the local cluster"
        stay_here(settings, "predict asks the local cluster", remedy)
        self._base = f"http://localhost:{running(settings).http_port}"
        self._settings, file = settings, settings.cli_key_file
        self._key = settings.api_key or (file.read_text() if file.exists() else "")
        self._http = httpx.Client(timeout=60, trust_env=False)  # no proxy knows what runs here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._http.close()

    def infer(self, model: str, body: bytes, version: int | None = None) -> dict[str, Any]:
        """The answer to a JSON request.

        Raises:
            RequestError: the server refuses it, with the server's own words.
            ClusterError: nobody answers.
        """
        headers = {"content-type": "application/json", "authorization": f"Bearer {self._key}"}
        try:
            response = self._http.post(self._base + _path(model, version), content=body, headers=headers)
        except httpx.TransportError as error:
            raise ClusterError("the server doesn't answer", seen=error, remedy="`tidepool status`") from error
        return answer_in(response)

    def curl(self, model: str, request: Path, version: int | None = None) -> str:
        """The curl line that sends the same request."""
        return curl_line(self._base + _path(model, version), request, self._settings)


def in_service(http_port: int) -> set[str]:
    """The models that the front end at this port of this machine has in service; nobody needs a key to ask.

    Raises:
        ClusterError: nobody answers.
    """
    try:
        response = httpx.post(f"http://localhost:{http_port}/v2/repository/index", timeout=10, trust_env=False)
        return {entry["name"] for entry in response.raise_for_status().json()}
    except httpx.HTTPError as error:
        raise ClusterError("the server doesn't answer", seen=error, remedy="`tidepool status`") from error


def curl_line(url: str, request: Path, settings: Settings) -> str:
    """What a shell is to run to send a file with the CLI's own key; a key from the environment isn't written out."""
    key = "$TIDEPOOL_API_KEY" if settings.api_key else f"$(cat {shlex.quote(str(settings.cli_key_file))})"
    return f'curl {shlex.quote(url)} -H "Authorization: Bearer {key}" -d {shlex.quote(f"@{request}")}'


def answer_in(response: httpx.Response) -> dict[str, Any]:
    """The JSON of a response with status 200.

    Raises:
        RequestError: another status, or no JSON, which is what HAProxy says when no replica is there.
    """
    try:
        document = response.json()
    except ValueError:
        document = None
    if response.status_code == 200 and isinstance(document, dict):
        return document
    words = document.get("error") if isinstance(document, dict) else None
    raise RequestError(
        f"status {response.status_code}: {words or ' '.join(response.text.split())[:200] or response.reason_phrase}"
    )


def _path(model: str, version: int | None) -> str:
    return f"/v2/models/{model}" + (f"/versions/{version}" if version is not None else "") + "/infer"
