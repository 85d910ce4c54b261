"""LitServe: its HTTP server and one worker, which are two processes."""

from __future__ import annotations

import base64
import os
from typing import Any

import litserve as ls
from inference import BATCH, Network, Rows


class Api(ls.LitAPI):  # type: ignore[misc]
    def setup(self, device: str) -> None:
        self.network = Network()

    # LitServe makes its HTTP schema from the annotations of this and of `encode_response`: with none, any JSON.
    def decode_request(self, request):  # type: ignore[no-untyped-def]
        """One row; base64 in the workload that sends bytes."""
        if "row" in request:
            return self.network.from_bytes(base64.b64decode(request["row"]))[0]
        return self.network.from_numbers(request["inputs"][0]["data"])[0]

    def predict(self, rows: Rows) -> Any:
        """The rows of a batch together, or the one row if there are no batches."""
        return self.network(rows) if BATCH > 1 else self.network(rows[None])

    def unbatch(self, output: dict[str, Rows]) -> list[dict[str, Rows]]:
        count = len(next(iter(output.values())))
        return [{name: values[row : row + 1] for name, values in output.items()} for row in range(count)]

    def encode_response(self, output):  # type: ignore[no-untyped-def]
        return {name: values.tolist() for name, values in output.items()}


if __name__ == "__main__":
    api = Api(max_batch_size=BATCH, batch_timeout=0.01 if BATCH > 1 else 0.0)
    server = ls.LitServer(api, accelerator="cpu", devices=1, workers_per_device=1, timeout=60)
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
