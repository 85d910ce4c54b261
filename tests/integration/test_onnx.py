"""Networks become ONNX files that answer as torch does; in int8, nearly so, and the same in any company."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tidepool.errors import ExportError
from tidepool.evaluate.metrics import Arrays
from tidepool.export.onnx import open_onnx, write_onnx
from tidepool.export.quantize import quantize
from tidepool.recipe import TensorSpec


class Shapes:
    """The part of a recipe that the ONNX stage reads."""

    def __init__(self, features: tuple[TensorSpec, ...], predictions: tuple[TensorSpec, ...]) -> None:
        self.features, self.predictions = features, predictions


class Text(torch.nn.Module):
    """Mean of token embeddings: any number of tokens, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = torch.nn.Embedding(50, 16, padding_idx=0), torch.nn.Linear(16, 3)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used = (tokens != 0).unsqueeze(-1).float()
        mean = (self.embedding(tokens) * used).sum(1) / used.sum(1).clamp(min=1)
        return self.head(mean), mean


class Sound(torch.nn.Module):
    """Convolutions over a waveform."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Conv1d(1, 8, 9, stride=4), torch.nn.BatchNorm1d(8), torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool1d(1), torch.nn.Flatten(), torch.nn.Linear(8, 5),
        )  # fmt: skip

    def forward(self, wave: torch.Tensor) -> torch.Tensor:
        return self.layers(wave.unsqueeze(1))


def text(folder: Path) -> tuple[Path, Arrays]:
    tokens = np.random.default_rng(0).integers(1, 50, (64, 12))
    shapes = Shapes(
        (TensorSpec("tokens", "INT64", (-1, -1)),),
        (TensorSpec("logits", "FP32", (-1, 3)), TensorSpec("mean", "FP32", (-1, 16))),
    )
    write_onnx(Text().eval(), shapes, [tokens], folder / "text.onnx")  # type: ignore[arg-type]
    return folder / "text.onnx", [tokens]


def sound(folder: Path) -> tuple[Path, Arrays]:
    wave = np.random.default_rng(0).normal(size=(64, 200)).astype(np.float32)
    shapes = Shapes((TensorSpec("wave", "FP32", (-1, 200)),), (TensorSpec("logits", "FP32", (-1, 5)),))
    write_onnx(Sound().eval(), shapes, [wave], folder / "sound.onnx")  # type: ignore[arg-type]
    return folder / "sound.onnx", [wave]


def test_free_axes_take_any_length_and_tensors_bear_the_recipes_names(tmp_path: Path) -> None:
    import onnx

    path, _ = text(tmp_path)
    graph = onnx.load(path).graph
    (tokens,) = graph.input
    assert (tokens.name, [axis.dim_param for axis in tokens.type.tensor_type.shape.dim]) == (
        "tokens",
        ["batch", "tokens_1"],
    )
    assert [output.name for output in graph.output] == ["logits", "mean"]
    assert [p.shape for p in open_onnx(path)([np.ones((3, 40), np.int64)])] == [(3, 3), (3, 16)]


@pytest.mark.parametrize("name", ["embedding", "mean", "tokens.1"])
def test_a_prediction_may_have_the_name_of_an_operator(tmp_path: Path, name: str) -> None:
    class Embedded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = torch.nn.Embedding(50, 4)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            mean: torch.Tensor = self.words(tokens).mean(dim=1) + 1
            return mean

    shapes = Shapes((TensorSpec("tokens", "INT64", (-1, 6)),), (TensorSpec(name, "FP32", (-1, 4)),))
    tokens = np.arange(12).reshape(2, 6)
    write_onnx(Embedded().eval(), shapes, [tokens], tmp_path / "x.onnx")  # type: ignore[arg-type]
    assert open_onnx(tmp_path / "x.onnx")([tokens])[0].shape == (2, 4)


@pytest.mark.parametrize(
    ("feature", "prediction"),
    [("x", "weight"), ("x", "scale"), ("x", "head.bias"), ("weight", "y"), ("head.bias", "head.weight")],
)
def test_features_and_predictions_may_have_the_names_of_parameters(
    tmp_path: Path, feature: str, prediction: str
) -> None:
    class Weighted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.head = torch.nn.Parameter(torch.randn(6, 4)), torch.nn.Linear(4, 3)
            self.register_buffer("scale", torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            answer: torch.Tensor = torch.relu(self.head(x @ self.weight)) * self.scale
            return answer

    shapes = Shapes((TensorSpec(feature, "FP32", (-1, 6)),), (TensorSpec(prediction, "FP32", (-1, 3)),))
    rows = np.ones((2, 6), np.float32)
    write_onnx(Weighted().eval(), shapes, [rows], tmp_path / "x.onnx")  # type: ignore[arg-type]
    assert open_onnx(tmp_path / "x.onnx")([rows])[0].shape == (2, 3)


def test_an_onnx_file_says_nothing_about_the_machine_it_was_made_on(tmp_path: Path) -> None:
    content = text(tmp_path)[0].read_bytes()
    assert str(Path(sys.prefix)).encode() not in content
    assert str(Path(__file__).parent).encode() not in content


@pytest.mark.parametrize("model", [text, sound])
def test_an_int8_answer_does_not_depend_on_the_other_rows_of_the_batch(
    tmp_path: Path, model: Callable[[Path], tuple[Path, Arrays]]
) -> None:
    path, (rows,) = model(tmp_path)
    quantize(path, tmp_path / "int8.onnx", [rows])
    run = open_onnx(tmp_path / "int8.onnx")
    together = run([rows])[0]
    alone = np.concatenate([run([rows[i : i + 1]])[0] for i in range(len(rows))])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, open_onnx(path)([rows])[0], atol=0.05)


def test_a_network_that_branches_on_values_is_refused_with_the_reason(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    shapes = Shapes((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
    with pytest.raises(ExportError, match=r"stage onnx: .*data-dependent"):
        write_onnx(Branching(), shapes, [np.ones((2, 3), np.float32)], tmp_path / "x.onnx")  # type: ignore[arg-type]


def test_a_network_that_draws_random_numbers_is_refused(tmp_path: Path) -> None:
    class Random(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.rand_like(x)

    shapes = Shapes((TensorSpec("x", "FP32", (-1, 3)),), (TensorSpec("y", "FP32", (-1, 3)),))
    with pytest.raises(ExportError, match="ONNX Runtime and torch differ on 1 rows"):
        write_onnx(Random(), shapes, [np.ones((2, 3), np.float32)], tmp_path / "x.onnx")  # type: ignore[arg-type]


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    with pytest.raises(ExportError, match="refuses"):
        open_onnx(tmp_path / "x.onnx")
