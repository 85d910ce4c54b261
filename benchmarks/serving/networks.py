"""The three networks that every contestant serves, as ONNX with random weights, the same ones for the same seed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

FEATURES, HIDDEN, CLASSES = 784, 128, 10
VOCABULARY, TOKENS, WIDTH, LAYERS, HEADS, INNER = 8192, 128, 384, 6, 12, 1536
CHANNELS, SIDE = 3, 224


def session(path: str | Path) -> Any:
    """ONNX Runtime's session of a network, with one thread inside an operator."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def softmax(logits: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    """What every contestant answers with, for `mlp`."""
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return {"digit": logits.argmax(axis=1), "probabilities": exponentials / exponentials.sum(axis=1, keepdims=True)}


def mlp(path: Path, seed: int = 0) -> None:
    """784 floats, one hidden layer of 128, logits of ten classes."""
    graph = _Graph(seed)
    hidden = graph.add("Relu", graph.linear("Gemm", "image", FEATURES, HIDDEN))
    graph.linear("Gemm", hidden, HIDDEN, CLASSES, output="logits")
    graph.write(path, ("image", np.float32, [FEATURES]), ("logits", [CLASSES]))


def encoder(path: Path) -> None:
    """128 tokens through six layers of self-attention, 384 wide with 12 heads and 1536 inside; their mean."""
    graph = _Graph()
    state = graph.add("Gather", graph.weight(VOCABULARY, WIDTH), "tokens")
    state = graph.norm(graph.add("Add", state, graph.weight(TOKENS, WIDTH)), WIDTH)
    for _ in range(LAYERS):
        state = graph.norm(graph.add("Add", state, _attention(graph, state)), WIDTH)
        inner = graph.add("Gelu", graph.linear("MatMul", state, WIDTH, INNER))
        state = graph.norm(graph.add("Add", state, graph.linear("MatMul", inner, INNER, WIDTH)), WIDTH)
    graph.add("ReduceMean", state, graph.constant([1]), output="embedding", keepdims=0)
    graph.write(path, ("tokens", np.int64, [TOKENS]), ("embedding", [WIDTH]))


def torch_encoder(seed: int = 0) -> Any:
    """The same as `encoder` in torch, with other random weights: what a GPU runs."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads, self.merge = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
            self.inner = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))
            self.attended, self.done = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)

        def forward(self, state: torch.Tensor) -> torch.Tensor:
            query, key, value = self.heads(state).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(query, key, value)
            state = self.attended(state + self.merge(seen.transpose(1, 2).flatten(2)))
            done: torch.Tensor = self.done(state + self.inner(state))
            return done

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TOKENS, WIDTH)
            self.norm, self.layers = nn.LayerNorm(WIDTH), nn.Sequential(*(Layer() for _ in range(LAYERS)))

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            mean: torch.Tensor = self.layers(self.norm(self.words(tokens) + self.places.weight)).mean(dim=1)
            return mean

    torch.manual_seed(seed)
    return Encoder().eval()


def pool(path: Path) -> None:
    """A picture of 3 x 224 x 224, the mean of each channel, scores of ten classes: next to no work, much to carry."""
    graph = _Graph()
    means = graph.add("Flatten", graph.add("GlobalAveragePool", "image"))
    graph.linear("Gemm", means, CHANNELS, CLASSES, output="scores")
    graph.write(path, ("image", np.float32, [CHANNELS, SIDE, SIDE]), ("scores", [CLASSES]))


def _attention(graph: _Graph, state: str) -> str:
    shape, back = graph.constant([0, 0, HEADS, WIDTH // HEADS]), graph.constant([0, 0, WIDTH])
    query, key, value = (
        graph.add("Transpose", graph.add("Reshape", graph.linear("MatMul", state, WIDTH, WIDTH), shape), perm=order)
        for order in ([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])
    )
    scale = graph.constant(np.float32(math.sqrt(WIDTH // HEADS)))
    weights = graph.add("Softmax", graph.add("Div", graph.add("MatMul", query, key), scale), axis=-1)
    mixed = graph.add("Transpose", graph.add("MatMul", weights, value), perm=[0, 2, 1, 3])
    return graph.linear("MatMul", graph.add("Reshape", mixed, back), WIDTH, WIDTH)


class _Graph:
    """An ONNX graph that grows node by node; tensors go by the names that `add` gives back."""

    def __init__(self, seed: int = 0) -> None:
        from onnx import helper, numpy_helper

        self._helper, self._numpy_helper = helper, numpy_helper
        self._rng = np.random.default_rng(seed)
        self._nodes: list[Any] = []
        self._tensors: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"n{len(self._nodes)}"
        self._nodes.append(self._helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, values: Any) -> str:
        name = f"t{len(self._tensors)}"
        self._tensors.append(self._numpy_helper.from_array(np.asarray(values), name))
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self._rng.normal(0, 0.05, shape).astype(np.float32))

    def linear(self, operator: str, state: str, width: int, wider: int, output: str = "") -> str:
        """A layer with a bias: Gemm for rows, MatMul for rows of tokens."""
        weight, bias = self.weight(width, wider), self.constant(np.zeros(wider, np.float32))
        if operator == "Gemm":
            return self.add("Gemm", state, weight, bias, output=output)
        return self.add("Add", self.add("MatMul", state, weight), bias, output=output)

    def norm(self, state: str, width: int) -> str:
        ones, zeros = self.constant(np.ones(width, np.float32)), self.constant(np.zeros(width, np.float32))
        return self.add("LayerNormalization", state, ones, zeros, axis=-1)

    def write(self, path: Path, entry: tuple[str, Any, list[int]], leave: tuple[str, list[int]]) -> None:
        helper = self._helper
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(entry[1]))
        inputs = [helper.make_tensor_value_info(entry[0], kind, ["n", *entry[2]])]
        float32 = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32))
        outputs = [helper.make_tensor_value_info(leave[0], float32, ["n", *leave[1]])]
        graph = helper.make_graph(self._nodes, path.stem, inputs, outputs, self._tensors)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
        path.write_bytes(model.SerializeToString())
