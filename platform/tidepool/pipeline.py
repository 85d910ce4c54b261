"""A model's way from raw rows to a registered version: four steps, each a job of its own or all in one.

Every step finds what the one before left in the storage, so that each can be run, and run again, alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tidepool import storage
from tidepool.artifact import Artifact, open_artifact
from tidepool.errors import ModelNotFound, TrainingError
from tidepool.recipe import load_recipe
from tidepool.settings import Settings
from tidepool.spec import Spec
from tidepool.telemetry.progress import Progress, quiet

if TYPE_CHECKING:
    import numpy.typing as npt

    from tidepool.data.preprocess import PreparedData
    from tidepool.registry.client import Registry
    from tidepool.registry.entities import ModelVersion
    from tidepool.train.tracking import Run
    from tidepool.train.trainer import TrainResult


class Pipeline:
    """The steps of one spec, on the storage and registry of one installation."""

    def __init__(self, spec: Spec, settings: Settings | None = None, progress: Progress = quiet) -> None:
        self._spec, self._settings, self._progress = spec, settings or Settings(), progress
        self._recipe = load_recipe(spec.recipe, spec.params)

    def run(self) -> ModelVersion:
        """All four steps."""
        self.train()
        self.evaluate()
        return self.export()

    def preprocess(self) -> PreparedData:
        """Read, check, split and preprocess the rows; what is there already is used again."""
        from tidepool.data.preprocess import prepare

        return prepare(self._spec, self._recipe, self._settings.storage("data"), self._progress)

    def train(self) -> TrainResult:
        """Train, going on from the last checkpoint if an earlier run of the same spec was interrupted.

        With `train.num_workers: [min, max]` the pool says how many there are, where there is one.
        """
        from tidepool.pool.coordinator import sharing
        from tidepool.train.trainer import fit

        data = self.preprocess()
        return fit(self._spec, data, self._runs, self._progress, sharing(self._spec))

    def evaluate(self) -> dict[str, float]:
        """The metrics of the newest complete run on the held-out rows.

        Raises:
            TrainingError: there is no complete run of this spec.
            GateError: the gate isn't met.
        """
        from tidepool.checkpoint import load
        from tidepool.evaluate import gate, metrics
        from tidepool.train import tracking

        run, data = self._trained()
        measured = metrics.evaluate(self._recipe, load(run.checkpoint.uri).weights, data)
        for outcome in gate.check(measured, self._champion_metrics(), self._spec.evaluate.gate):
            print(f"gate: {outcome}")
        tracking.evaluated(run, measured)
        return measured

    def export(self) -> ModelVersion:
        """Compress the newest complete run, check that the result answers as the original did, and register it; promote
        it, unless the champion has another signature or the spec wants none of it.

        Raises:
            TrainingError: there is no complete run of this spec, or it wasn't evaluated.
            ExportError: the result differs from the original by more than the spec allows; nothing is registered.
            GateError: the result misses the gate that the original met; nothing is registered.
        """
        from tidepool.evaluate import gate
        from tidepool.export.pipeline import export
        from tidepool.serve import parity

        run, data = self._trained()
        if run.evaluation is None:
            raise TrainingError("the run wasn't evaluated, or missed the gate", seen=run.run_id, remedy="evaluate it")
        staging = self._settings.storage("staging")
        made = export(self._spec, self._recipe, run.checkpoint, data, staging, run.evaluation, self._progress)
        try:
            for stage in made.stages:
                print(f"export: {stage}")
            for outcome in gate.check(made.metrics, self._champion_metrics(), self._spec.evaluate.gate):
                print(f"gate, compressed: {outcome}")
            with tempfile.TemporaryDirectory() as scratch:
                artifact = open_artifact(made.uri, Path(scratch), made.digest)
                moved = parity.check(artifact, self._spec.export.parity_tolerance)
                print(f"parity: answers differ from the trained network's by at most {moved:.2g}")
                champion = self._champion()
                fits = champion is None or same_signature(champion, artifact)
                version = self._registry().register(artifact)
        finally:
            storage.remove(made.uri)
        name, number = version.name, version.version
        if champion and not fits:
            print(
                f"registered {name} version {number}; version {champion.version} stays champion, since clients send it "
                f"something else or get something else: `tidepool promote {name} {number}` if you mean it, or give the "
                "spec a name of its own"
            )
            return version
        alias = "champion" if champion is None or self._spec.evaluate.promote else "challenger"
        promoted = self._registry().promote(name, number, alias)
        print(f"registered {name} version {number} as {alias}")
        if champion:
            metrics = gate.compared(made.metrics, champion.metrics)
            print(f"beside version {champion.version}, the champion so far: {metrics}")
            if alias == "champion":
                print(f"`tidepool rollback {name}` goes back to version {champion.version}")
            else:
                print(f"`tidepool canary {name} {number} --percent 10` has it answer a tenth of the requests")
        return promoted

    def held_out(self, rows: int) -> dict[str, npt.NDArray[Any]]:
        """Raw held-out rows: the signature's inputs and the target."""
        return self._trained()[1].raw(rows)

    def _trained(self) -> tuple[Run, PreparedData]:
        from tidepool.data.preprocess import open_prepared
        from tidepool.train.tracking import latest_complete, run_digest

        run = latest_complete(self._runs, self._spec.name, run_digest(self._spec))
        if run is None:
            raise TrainingError("no complete training run of this spec", seen=self._spec.name, remedy="train it first")
        return run, open_prepared(run.data_uri)

    def _champion_metrics(self) -> Mapping[str, float] | None:
        champion = self._champion()
        return champion.metrics if champion else None

    def _champion(self) -> ModelVersion | None:
        try:
            return self._registry().version(self._spec.name, "champion")
        except ModelNotFound:
            return None

    def _registry(self) -> Registry:
        from tidepool.registry.client import Registry

        return Registry(self._settings.registry, self._settings.storage("artifacts"))

    @property
    def _runs(self) -> str:
        return self._settings.storage("runs")


def same_signature(version: ModelVersion, artifact: Artifact) -> bool:
    """Whether clients of a registered version can talk to the artifact as well."""
    return bool(storage.read_manifest(version.uri)["signature"] == artifact.signature.to_json())
