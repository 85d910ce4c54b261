"""FastAPI on uvicorn, the way its own documentation writes such a server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from inference import Network
from pydantic import BaseModel

network = Network()
app = FastAPI()
Number = float if network.dtype.kind == "f" else int


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[Number]  # type: ignore[valid-type]


class InferRequest(BaseModel):
    inputs: list[Tensor]


@app.post("/infer")
async def infer(request: InferRequest) -> dict[str, Any]:
    rows = network.from_numbers(request.inputs[0].data)
    return {"model_name": "network", "outputs": network.tensors(rows)}


@app.post("/infer/bytes")
async def infer_bytes(request: Request) -> dict[str, Any]:
    return {"model_name": "network", "outputs": network.tensors(network.from_bytes(await request.body()))}
