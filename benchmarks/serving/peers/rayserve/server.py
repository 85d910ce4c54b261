"""Ray Serve as it comes: its Python proxy and one replica, on a cluster of its own."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
import ray
from inference import BATCH, Network, Rows
from ray import serve
from starlette.requests import Request

QUIET = {"enable_access_log": False, "log_level": "WARNING"}


@serve.deployment(max_ongoing_requests=64, logging_config=QUIET)
class Server:
    def __init__(self) -> None:
        self.network = Network()

    async def __call__(self, request: Request) -> dict[str, Any]:
        if request.headers["content-type"] == "application/octet-stream":
            rows = self.network.from_bytes(await request.body())
        else:
            rows = self.network.from_numbers((await request.json())["inputs"][0]["data"])
        answer = await self.infer(rows) if BATCH > 1 else self.network(rows)
        return {name: values.tolist() for name, values in answer.items()}

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=0.01)
    async def infer(self, requests: list[Rows]) -> list[dict[str, Rows]]:
        answers = self.network(np.concatenate(requests))
        return [{name: values[i : i + 1] for name, values in answers.items()} for i in range(len(requests))]


if __name__ == "__main__":
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])}, logging_config=QUIET)
    serve.run(Server.bind(), route_prefix="/")
    signal.pause()
