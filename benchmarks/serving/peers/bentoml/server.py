"""BentoML: one worker. A batch needs arrays in and out, so it has a method of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import bentoml
import numpy as np
from bentoml.validators import ContentType
from inference import BATCH, Network


@bentoml.service(workers=1, traffic={"timeout": 60}, logging={"access": {"enabled": False}})
class Server:
    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api
    def infer(self, rows: np.ndarray) -> dict[str, Any]:
        return self._answer(rows.astype(self.network.dtype, copy=False))

    @bentoml.api(batchable=True, max_batch_size=max(BATCH, 2))
    def infer_batch(self, rows: np.ndarray) -> np.ndarray:
        (answer,) = self.network(rows.astype(self.network.dtype, copy=False)).values()
        return answer

    @bentoml.api
    def infer_bytes(self, row: Annotated[Path, ContentType("application/octet-stream")], /) -> dict[str, Any]:
        return self._answer(self.network.from_bytes(row.read_bytes()))

    def _answer(self, rows: np.ndarray) -> dict[str, Any]:
        return {name: values.tolist() for name, values in self.network(rows).items()}
