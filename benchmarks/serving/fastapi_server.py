"""The peer: FastAPI on uvicorn, one process, the way its own documentation writes such a server."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI
from mlp import softmax
from pydantic import BaseModel

options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class InferRequest(BaseModel):
    inputs: list[Tensor]


@app.post("/v2/models/mlp/infer")
async def infer(request: InferRequest) -> dict[str, Any]:
    tensor = request.inputs[0]
    image = np.array(tensor.data, np.float32).reshape(tensor.shape)
    answer = softmax(session.run(None, {"image": image})[0])
    outputs = [
        {"name": "digit", "datatype": "INT64", "shape": [len(image)], "data": answer["digit"].tolist()},
        {
            "name": "probabilities",
            "datatype": "FP32",
            "shape": list(answer["probabilities"].shape),
            "data": answer["probabilities"].reshape(-1).tolist(),
        },
    ]
    return {"model_name": "mlp", "outputs": outputs}
