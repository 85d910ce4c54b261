"""From a checkpoint to an artifact: smaller with every stage, and measured on the held-out rows after each.

    trained -> prune -> onnx -> quantize -> artifact {model.onnx, weights.safetensors, golden.npz}

A stage that costs more of a metric than `export.max_metric_drop` ends the export, and nothing is written.
"""

from __future__ import annotations

import functools
import gzip
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tidepool import artifact, storage
from tidepool.checkpoint import Checkpoint, load
from tidepool.errors import ExportError
from tidepool.evaluate.gate import metric_of
from tidepool.evaluate.metrics import Run, predict, score, trained
from tidepool.export.onnx import open_onnx, write_onnx
from tidepool.export.prune import prune
from tidepool.export.quantize import quantize
from tidepool.recipe import Batch, Recipe
from tidepool.spec import Rule, Spec
from tidepool.telemetry.progress import Progress, quiet
from tidepool.telemetry.sizes import shown

if TYPE_CHECKING:
    import torch

    from tidepool.data.prepared import PreparedData

GOLDEN_ROWS = 32


@dataclass(frozen=True)
class Stage:
    """The model after one stage."""

    name: str
    bytes: int
    """Size of the stage's file: safetensors for `trained` and `prune`, ONNX from `onnx` on."""
    metrics: dict[str, float]
    gzip_bytes: int
    """Size of the same file compressed: pruning makes files smaller only here."""
    sparsity: float
    """Share of the weights that pruning made zero."""

    def __str__(self) -> str:
        measured = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items())
        zeros = f", {self.sparsity:.0%} zeros" if self.sparsity else ""
        return f"{self.name:<8} {shown(self.bytes):>9}, {shown(self.gzip_bytes):>9} gzipped{zeros}, {measured}"


@dataclass(frozen=True)
class Exported:
    """A written artifact and the stages that led to it."""

    uri: str
    digest: str
    metrics: dict[str, float]
    """Of the model in the artifact, through ONNX Runtime."""
    stages: list[Stage]


def export(
    spec: Spec,
    recipe: Recipe,
    checkpoint: Checkpoint,
    data: PreparedData,
    root: str,
    metrics: Mapping[str, float],
    progress: Progress = quiet,
) -> Exported:
    """Export a checkpoint as an artifact at `<root>/<name>/<checkpoint digest16>-<spec digest16>`.

    `metrics`: those of the trained network, which every stage is compared with.

    Raises:
        ExportError: a stage fails, or costs more of a metric than `export.max_metric_drop`.
        GateError: the gate names a metric that there isn't.
        StorageError: the checkpoint can't be read, or the artifact can't be written.
    """
    network = trained(recipe, load(checkpoint.uri).weights)
    rows = data.load("train")
    samples = [rows[feature.name] for feature in recipe.features]
    uri = f"{root.rstrip('/')}/{spec.name}/{checkpoint.digest[:16]}-{spec.digest()[:16]}"
    with tempfile.TemporaryDirectory() as scratch, storage.explained("write", scratch):
        folder = Path(scratch)
        stages = _Stages(spec, recipe, data.load("test"), metrics, progress)
        stages.add("trained", _save(network, folder / "trained.safetensors"), functools.partial(predict, network))

        small, sparsity = prune(network, spec.export.prune)
        weights = _save(small, folder / artifact.WEIGHTS)
        if spec.export.prune:
            stages.add("prune", weights, functools.partial(predict, small), sparsity)

        model = folder / "float32.onnx"
        write_onnx(small, recipe, samples, model)
        stages.add("onnx", model, open_onnx(model), sparsity)

        if spec.export.quantize == "int8":
            source, model = model, folder / "int8.onnx"
            quantize(source, model, samples)
            stages.add("quantize", model, open_onnx(model), sparsity)

        with artifact.new_artifact(
            uri,
            name=spec.name,
            recipe_path=spec.recipe,
            params=spec.params,
            signature=recipe.signature,
            preprocessing_state=data.preprocessing_state,
            metrics=stages.done[-1].metrics,
            lineage=_lineage(spec, checkpoint, data),
        ) as target:
            shutil.copyfile(model, target / artifact.ONNX)
            shutil.copyfile(weights, target / artifact.WEIGHTS)
            _golden(recipe, network, data).write(target / artifact.GOLDEN)
    digest = storage.digest(storage.read_manifest(uri))
    return Exported(uri, digest, stages.done[-1].metrics, stages.done)


def worsened(before: float, after: float, rule: Rule | None) -> float:
    """By how much a metric got worse.

    The gate's rule says which way is worse: down for `>=`, up for `<=`. Where no rule does, any change counts.
    """
    change = round(after - before, 12)  # 0.98 - 0.97 is a hair over 0.01 in binary floating point
    if rule and rule.compare in (">=", ">"):
        return -change
    if rule and rule.compare in ("<=", "<"):
        return change
    return abs(change)


class _Stages:
    """The stages done so far; each new one is measured, and refused if it costs too much."""

    def __init__(
        self, spec: Spec, recipe: Recipe, held_out: Batch, metrics: Mapping[str, float], progress: Progress
    ) -> None:
        self.done: list[Stage] = []
        self._recipe, self._held_out, self._before, self._progress = recipe, held_out, metrics, progress
        self._allowed = spec.export.max_metric_drop
        self._total = 2 + (spec.export.prune > 0) + (spec.export.quantize != "none")
        gate = spec.evaluate.gate
        self._watched: list[tuple[str, Rule | None]] = [(metric_of(key, metrics), rule) for key, rule in gate.items()]
        self._watched = self._watched or [(metric, None) for metric in metrics]

    def add(self, name: str, file: Path, run: Run, sparsity: float = 0.0) -> None:
        """Measure what `run` predicts.

        Raises:
            ExportError: a watched metric got worse by more than is allowed.
        """
        measured = score(self._recipe, run, self._held_out)
        for metric, rule in self._watched:
            before, after = self._before[metric], measured[metric]
            if not worsened(before, after, rule) <= self._allowed:
                raise ExportError(
                    f"stage {name}: {metric} went from {before:.6g} to {after:.6g}",
                    seen=f"worse by {worsened(before, after, rule):.6g}",
                    allowed=f"{self._allowed:g} (export.max_metric_drop)",
                    remedy="prune or quantise less, or raise export.max_metric_drop",
                )
        content = file.read_bytes()
        packed = len(gzip.compress(content, mtime=0))
        self.done.append(Stage(name, len(content), measured, packed, sparsity))
        self._progress("export", len(self.done), self._total, name)


def _save(network: torch.nn.Module, path: Path) -> Path:
    from safetensors.torch import save

    # Cloned, because safetensors refuses tensors that share memory, as tied weights do.
    path.write_bytes(save({name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}))
    return path


def _golden(recipe: Recipe, network: torch.nn.Module, data: PreparedData) -> artifact.Golden:
    rows = data.raw(GOLDEN_ROWS)
    inputs = {tensor.name: rows[tensor.name] for tensor in recipe.signature.inputs}
    preprocessing = recipe.preprocessing(**data.preprocessing_state)
    return artifact.Golden(inputs, artifact.answer(recipe, preprocessing, functools.partial(predict, network), inputs))


def _lineage(spec: Spec, checkpoint: Checkpoint, data: PreparedData) -> dict[str, object]:
    return {
        "data_digest": data.digest,
        "checkpoint_digest": checkpoint.digest,
        "checkpoint_uri": checkpoint.uri,
        "step": checkpoint.step,
        "spec": spec.model_dump(mode="json"),
        "spec_digest": spec.digest(),
    }
