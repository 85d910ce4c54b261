"""An exported model is smaller, and answers as the trained one did."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file

from tidepool import checkpoint, storage
from tidepool.artifact import answer, open_artifact
from tidepool.errors import ExportError, GateError
from tidepool.evaluate.metrics import evaluate, predict, trained
from tidepool.export.onnx import open_onnx
from tidepool.export.pipeline import Exported, export, worsened
from tidepool.export.prune import prune
from tidepool.pipeline import Pipeline
from tidepool.recipe import Recipe, load_recipe
from tidepool.serve import parity
from tidepool.settings import Settings
from tidepool.spec import EvaluateSpec, Rule, Spec
from tidepool.telemetry.progress import Progress, quiet
from tidepool.train.tracking import Run

DOCS = Path(__file__).parents[2] / "docs" / "recipes.md"
DIGITS = Spec.model_validate(
    {
        "name": "digits",
        "recipe": "tidepool.recipes.digits:Digits",
        "data": {"source": "builtin:digits"},
        "train": {"epochs": 8},
        "evaluate": {"gate": {"accuracy": ">= 0.9"}},
        "export": {"prune": 0.3, "quantize": "int8"},
    }
)


@dataclass(frozen=True)
class Rows:
    """Prepared data in memory."""

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    raw_test: dict[str, np.ndarray]
    preprocessing_state: dict[str, Any]
    digest: str = "d" * 64

    def load(self, split: str) -> dict[str, np.ndarray]:
        return {"train": self.train, "test": self.test}[split]

    def raw(self, rows: int | None) -> dict[str, np.ndarray]:
        return {name: values[:rows] for name, values in self.raw_test.items()}


@dataclass(frozen=True)
class Trained:
    """A recipe, its rows, and a checkpoint of it."""

    spec: Spec
    recipe: Recipe
    data: Rows
    checkpoint: checkpoint.Checkpoint
    metrics: dict[str, float]

    def export(self, root: Path, progress: Progress = quiet, **changes: Any) -> Exported:
        """Export with some fields of the spec's sections changed."""
        sections = {name: getattr(self.spec, name).model_copy(update=values) for name, values in changes.items()}
        spec = self.spec.model_copy(update=sections)
        return export(spec, self.recipe, self.checkpoint, self.data, str(root), self.metrics, progress)  # type: ignore[arg-type]


def split(recipe: Recipe, source: str) -> Rows:
    """The built-in rows, every fifth of them held out, fitted and preprocessed in this process."""
    table = recipe.builtin(source)
    held_out = np.arange(len(table)) % 5 == 0

    def map_reduce(map: Callable, reduce: Callable, combine: Callable) -> pa.Table:
        half = table.filter(pa.array(~held_out)).slice
        return reduce(pa.concat_tables([combine(map(half(0, 60))), combine(map(half(60)))]))

    def arrays(rows: pa.Table) -> dict[str, np.ndarray]:
        return {
            name: np.stack(column.to_numpy()) if pa.types.is_fixed_size_list(column.type) else column.to_numpy()
            for name, column in zip(rows.column_names, rows.columns, strict=True)
        }

    preprocessing = recipe.preprocessing.fit(map_reduce)
    raw = [arrays(table.filter(pa.array(mask))) for mask in (~held_out, held_out)]
    train, test = ({**preprocessing.apply(rows), recipe.target: rows[recipe.target]} for rows in raw)
    return Rows(train, test, raw[1], preprocessing.state())


def train(spec: Spec, folder: Path) -> Trained:
    """Train in this process and save a checkpoint."""
    recipe = load_recipe(spec.recipe, spec.params)
    data = split(recipe, spec.data.source.removeprefix("builtin:"))
    torch.manual_seed(spec.train.seed)
    torch.set_num_threads(1)  # steps this small only make threads wait for one another
    network = recipe.network()
    optimizer = recipe.optimizer(network, spec.train.learning_rate)
    features = [torch.tensor(data.train[feature.name]) for feature in recipe.features]
    target = torch.tensor(data.train[recipe.target])
    for _ in range(spec.train.epochs):
        for rows in torch.randperm(len(target)).split(spec.train.global_batch_size):
            optimizer.zero_grad()
            recipe.loss((network(*(f[rows] for f in features)),), target[rows]).backward()
            optimizer.step()
    state = checkpoint.TrainState(
        7, spec.train.epochs, 0, network.state_dict(), optimizer.state_dict(), torch.get_rng_state()
    )
    saved = checkpoint.save(str(folder / "checkpoints"), state)
    return Trained(spec, recipe, data, saved, evaluate(recipe, network.state_dict(), data))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(DIGITS, tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="module")
def exported(digits: Trained, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Digits, pruned and in int8."""
    return digits.export(tmp_path_factory.mktemp("exported"))


def test_every_stage_is_measured_and_the_last_is_the_artifacts(digits: Trained, exported: Exported) -> None:
    artifact = open_artifact(exported.uri, expected_digest=exported.digest)
    stages = {stage.name: stage for stage in exported.stages}
    assert list(stages) == ["trained", "prune", "onnx", "quantize"]
    assert stages["quantize"].bytes == artifact.onnx.stat().st_size
    assert stages["quantize"].bytes < stages["onnx"].bytes / 2
    assert stages["prune"].bytes == stages["trained"].bytes  # zeros take the room of any number ...
    assert stages["prune"].gzip_bytes < 0.8 * stages["trained"].gzip_bytes  # ... until they are compressed
    assert stages["prune"].sparsity == pytest.approx(0.3, abs=1e-3)
    assert artifact.metrics == exported.metrics == stages["quantize"].metrics
    assert exported.metrics["accuracy"] >= digits.metrics["accuracy"] - 0.01


def test_the_artifact_knows_where_it_came_from(digits: Trained, exported: Exported) -> None:
    lineage = open_artifact(exported.uri).lineage
    assert lineage["data_digest"] == digits.data.digest
    assert (lineage["checkpoint_uri"], lineage["checkpoint_digest"], lineage["step"]) == (
        digits.checkpoint.uri,
        digits.checkpoint.digest,
        7,
    )
    assert Spec.model_validate(lineage["spec"]) == digits.spec
    assert lineage["spec_digest"] == digits.spec.digest()


def test_golden_answers_are_the_trained_networks_own(digits: Trained, exported: Exported) -> None:
    golden = open_artifact(exported.uri).golden()
    assert len(golden.inputs["image"]) == 32
    network = trained(digits.recipe, checkpoint.load(digits.checkpoint.uri).weights)
    scaling = digits.recipe.preprocessing(**digits.data.preprocessing_state)
    expected = answer(digits.recipe, scaling, lambda features: predict(network, features), golden.inputs)
    for name, values in expected.items():
        np.testing.assert_array_equal(golden.outputs[name], values)


def test_the_exported_model_answers_the_golden_rows_as_the_trained_one(exported: Exported) -> None:
    artifact = open_artifact(exported.uri)
    golden = artifact.golden()
    answered = answer(artifact.recipe(), artifact.preprocessing(), open_onnx(artifact.onnx), golden.inputs)
    assert np.abs(answered["probabilities"] - golden.outputs["probabilities"]).max() < 0.1
    assert np.mean(answered["digit"] != golden.outputs["digit"]) <= 1 / 32


def test_the_weights_beside_the_onnx_file_are_the_pruned_ones(digits: Trained, exported: Exported) -> None:
    weights = load_file(open_artifact(exported.uri).weights)
    matrices = torch.cat([weights["0.weight"].flatten(), weights["2.weight"].flatten()])
    assert (matrices == 0).float().mean() == pytest.approx(0.3, abs=1e-3)
    assert evaluate(digits.recipe, weights, digits.data)["accuracy"] > 0.9


def test_without_compression_the_answers_are_equal_up_to_rounding(digits: Trained, tmp_path: Path) -> None:
    exported = digits.export(tmp_path, export={"prune": 0.0, "quantize": "none"})
    assert [stage.name for stage in exported.stages] == ["trained", "onnx"]
    assert exported.metrics == digits.metrics
    artifact = open_artifact(exported.uri)
    answered = answer(artifact.recipe(), artifact.preprocessing(), open_onnx(artifact.onnx), artifact.golden().inputs)
    np.testing.assert_allclose(
        answered["probabilities"], artifact.golden().outputs["probabilities"], rtol=1e-4, atol=1e-5
    )


def test_the_same_checkpoint_gives_the_same_artifact(digits: Trained, exported: Exported, tmp_path: Path) -> None:
    assert digits.export(tmp_path).digest == exported.digest


def test_a_stage_that_costs_too_much_is_named_and_nothing_is_written(digits: Trained, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"stage prune: accuracy went from 0\.9\d* to 0\.\d+.*max_metric_drop"):
        digits.export(tmp_path, export={"prune": 0.97})
    assert list(tmp_path.iterdir()) == []


def test_an_empty_gate_watches_every_metric(digits: Trained, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="stage prune: accuracy"):
        digits.export(tmp_path, export={"prune": 0.97}, evaluate={"gate": {}})


def test_a_gate_on_an_unknown_metric_ends_the_export(digits: Trained, tmp_path: Path) -> None:
    with pytest.raises(GateError, match="names a metric"):
        digits.export(tmp_path, evaluate={"gate": {"f1": Rule.model_validate(">= 0")}})


@pytest.mark.parametrize(
    ("after", "rule", "loss"),
    [
        (0.97, ">= 0", 0.01),
        (0.99, ">= 0", -0.01),
        (0.97, "<= 0", -0.01),
        (0.99, "< 0", 0.01),
        (0.97, "== 0", 0.01),
        (0.99, None, 0.01),
    ],
)
def test_the_rule_says_which_way_is_worse(after: float, rule: str | None, loss: float) -> None:
    assert worsened(0.98, after, rule and Rule.model_validate(rule)) == loss


def test_progress_ends_where_it_said_it_would(digits: Trained, tmp_path: Path) -> None:
    told: list[tuple[str, float, float, str]] = []
    digits.export(tmp_path, lambda step, done, total, note="": told.append((step, done, total, note)))
    stages = ("trained", "prune", "onnx", "quantize")
    assert told == [("export", done, 4, stage) for done, stage in enumerate(stages, start=1)]


def test_pruning_takes_the_smallest_weights_of_all_layers_and_spares_biases_and_norms() -> None:
    network = torch.nn.Sequential(torch.nn.Conv1d(1, 2, 3), torch.nn.BatchNorm1d(2), torch.nn.Linear(4, 6))
    with torch.no_grad():
        network[0].weight.fill_(0.1)  # all six of the convolution's are smaller than any of the linear layer's
        network[2].weight.fill_(0.5)
        network[2].bias.fill_(0.01)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    pruned, sparsity = prune(network, 0.2)
    assert sparsity == 6 / 30
    for name, value in pruned.state_dict().items():
        expected = torch.zeros_like(value) if name == "0.weight" else before[name]
        torch.testing.assert_close(value, expected)
    torch.testing.assert_close(network.state_dict(), before)  # the network itself stays whole


def test_tied_weights_stay_tied_when_pruned() -> None:
    network = torch.nn.Sequential(torch.nn.Embedding(8, 4), torch.nn.Linear(4, 8, bias=False))
    network[1].weight = network[0].weight
    pruned, _ = prune(network, 0.5)
    assert torch.equal(pruned[0].weight, pruned[1].weight)
    assert (pruned[0].weight == 0).sum() == 16


def test_exporting_prints_nothing(digits: Trained, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    digits.export(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_refused_export_leaves_no_artifact_behind(digits: Trained, tmp_path: Path) -> None:
    class AfterTraining(Pipeline):
        def _trained(self) -> tuple[Run, Any]:
            return Run("", "digits", "1", "", "", "", 0.0, final=final, evaluation=digits.metrics), digits.data

    final = dataclasses.asdict(digits.checkpoint)
    gate = EvaluateSpec(gate={"accuracy": Rule.model_validate(">= 1.1")})
    with pytest.raises(GateError):
        AfterTraining(digits.spec.model_copy(update={"evaluate": gate}), Settings(home=tmp_path)).export()
    assert not list(tmp_path.rglob("model.onnx"))


def test_the_recipe_of_the_docs_trains_and_exports_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = re.findall(r"^```(python|yaml)\n(.*?)^```$", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    blocks = dict(reversed(found))  # the first of each kind; others are of other recipes
    (tmp_path / "docs_flowers.py").write_text(blocks["python"])
    monkeypatch.syspath_prepend(tmp_path)
    document = yaml.safe_load(blocks["yaml"])
    assert document["recipe"] == "deployments.flowers.flowers:Flowers"
    flowers = train(Spec.model_validate({**document, "recipe": "docs_flowers:Flowers"}), tmp_path)
    assert flowers.metrics["accuracy"] >= flowers.spec.evaluate.gate["accuracy"].bound
    artifact = open_artifact(flowers.export(tmp_path).uri)
    answered = answer(artifact.recipe(), artifact.preprocessing(), open_onnx(artifact.onnx), artifact.golden().inputs)
    assert set(answered["species"]) == {b"setosa", b"versicolor", b"virginica"}
    assert storage.verify(artifact.folder)
    parity.check(artifact, flowers.spec.export.parity_tolerance)
