"""A model in service, as its clients see it."""

from __future__ import annotations

import time
from typing import Any

import httpx

from tidepool.registry.client import Registry
from tidepool.settings import Settings

ZEROS = {"inputs": [{"name": "image", "shape": [1, 64], "datatype": "FP32", "data": [0] * 64}]}


class Service:
    """A running cluster with digits in service: version 1 is the champion and answers 1, version 2 answers 2."""

    def __init__(self, settings: Settings, port: int) -> None:
        self.settings, self.url = settings, f"http://127.0.0.1:{port}"
        self.port = port
        self.registry = Registry(settings.registry, settings.storage("artifacts"))
        self.key = settings.cli_key_file.read_text()

    def ask(self, path: str = "digits", key: str | None = None, **options: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key if key is None else key}"}
        body = options or {"json": ZEROS}
        return httpx.post(f"{self.url}/v2/models/{path}/infer", headers=headers, timeout=30, **body)

    def stats(self) -> dict[str, Any]:
        """What the replica has seen of canary and shadow."""
        headers = {"authorization": f"Bearer {self.key}"}
        document = httpx.get(f"{self.url}/v2/models/digits/stats", headers=headers).json()
        return dict(document.get("traffic", {}))

    def await_version(self, version: str, deadline_s: float = 10.0) -> float:
        """Seconds until this version answers."""
        began = time.monotonic()
        while (seen := self.ask().json()["model_version"]) != version:
            assert time.monotonic() - began < deadline_s, f"version {seen} still answers"
        return time.monotonic() - began
