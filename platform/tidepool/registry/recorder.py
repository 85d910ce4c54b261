"""What MLflow writes: its tables, a run for each version, and the version itself.

MLflow is imported when the first version is registered, not before: it takes a second or two, and those who only
read or move an alias never need it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from tidepool import storage
from tidepool.artifact import Artifact
from tidepool.errors import RegistryError
from tidepool.registry.database import DIGEST, METRICS, ORIGIN, PARAMS, SIZE, explained, open_engine, shown
from tidepool.telemetry.progress import Progress, quiet

if TYPE_CHECKING:
    from types import ModuleType

    from mlflow import MlflowClient

LONGEST_VALUE = 6000
"""Characters that MLflow takes as the value of a param."""
BATCH = 100
"""Params that MLflow takes at once."""
MAKING_TABLES = 8_420_260
"""Key of the Postgres advisory lock under which the tables are made: any number, the same for all."""


class Recorder:
    """Registers versions in the MLflow store at a SQLAlchemy URL, and makes its tables when they are missing."""

    def __init__(self, url: str, artifacts: str, clock: Callable[[], float]) -> None:
        self._url, self._artifacts, self._clock = url, artifacts, clock

    def record(self, artifact: Artifact, uri: str, tags: Mapping[str, str], progress: Progress = quiet) -> int:
        """Register the artifact at `uri` as the next version of its model; returns the version's number.

        The run comes first, the version with all its tags last and in one transaction: what is killed between the
        two leaves an unfinished run behind, never half a version.

        Raises:
            RegistryError: the database can't be reached, or refuses.
        """
        name, lineage = artifact.name, artifact.lineage
        params = flattened({"recipe": artifact.recipe_path, "params": artifact.params, **lineage.get("spec", {})})
        origins = {f"{ORIGIN}{key}": str(value) for key, value in lineage.items() if not isinstance(value, Mapping)}
        facts = {
            DIGEST: artifact.digest,
            SIZE: str(artifact.bytes),
            METRICS: json.dumps(dict(artifact.metrics)),
            PARAMS: json.dumps(params),
        }
        with _explained(self._url):
            progress("record", 0, 2, "run")
            with _unless_it_exists():
                self._client.create_registered_model(name)
            run_id = self._client.create_run(self._experiment(name), tags={**tags, **origins}).info.run_id
            self._log(run_id, artifact.metrics, params)
            progress("record", 1, 2, "version")
            made = self._client.create_model_version(name, uri, run_id, tags={**tags, **origins, **facts})
            self._client.update_run(run_id, status="FINISHED", name=f"{name} {made.version}")
            progress("record", 2, 2)
        return int(made.version)

    @functools.cached_property
    def _client(self) -> MlflowClient:
        return connect(self._url)

    def _experiment(self, name: str) -> str:
        """The id of the experiment that holds the model's runs."""
        found = self._client.get_experiment_by_name(name)
        if found is None:
            with _unless_it_exists():
                return str(self._client.create_experiment(name, self._artifacts))
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def _log(self, run_id: str, metrics: Mapping[str, float], params: Mapping[str, str]) -> None:
        """Show metrics and params on the run, in MLflow's alphabet and sizes."""
        from mlflow.entities import Metric, Param

        now = int(self._clock() * 1000)
        self._client.log_batch(run_id, metrics=[Metric(_legal(key), value, now, 0) for key, value in metrics.items()])
        rows = [Param(_legal(key), value[:LONGEST_VALUE]) for key, value in params.items()]
        for start in range(0, len(rows), BATCH):
            self._client.log_batch(run_id, params=rows[start : start + BATCH])


def connect(url: str) -> MlflowClient:
    """MLflow's client on the database at `url`, whose tables are made if they are missing.

    Raises:
        RegistryError: the database can't be reached, or holds tables of another version of MLflow.
        StorageError: the file of a SQLite database can't be made.
    """
    make: type[MlflowClient] = _mlflow().MlflowClient
    with _explained(url):
        parsed = sa.make_url(url)
        if parsed.get_backend_name() == "sqlite":
            _make_file(Path(parsed.database or ""))
            return make(tracking_uri=url, registry_uri=url)
        with open_engine(url).begin() as connection:  # fails at once where MLflow would try for two minutes
            if parsed.get_backend_name() == "postgresql":
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(MAKING_TABLES)))
            return make(tracking_uri=url, registry_uri=url)


def _mlflow() -> ModuleType:
    """MLflow, told neither to report its use to its makers nor to log each table that it makes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for chatty in ("mlflow", "alembic"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    return mlflow


def flattened(spec: Mapping[str, Any], path: str = "") -> dict[str, str]:
    """Nested mappings to one level of dotted keys; what is not text becomes JSON.

    >>> flattened({"train": {"epochs": 20, "num_workers": [1, 4]}})
    {'train.epochs': '20', 'train.num_workers': '[1, 4]'}
    """
    flat: dict[str, str] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping):
            flat |= flattened(value, f"{path}{key}.")
        else:
            flat[f"{path}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def _make_file(path: Path) -> None:
    """Make a SQLite database that appears with all its tables, even if several processes make it at once."""
    if path.exists():
        return
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with storage.explained("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _mlflow().MlflowClient(tracking_uri=f"sqlite:///{beside}")
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
        finally:
            beside.unlink(missing_ok=True)


@contextlib.contextmanager
def _unless_it_exists() -> Iterator[None]:
    """Pass over MLflow's refusal to make what is there already."""
    try:
        yield
    except _mlflow().exceptions.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _legal(key: str) -> str:
    """The key with characters that MLflow takes: `recall@10` is shown as `recall_10`."""
    return re.sub(r"[^\w. -]", "_", key)[:250]


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    """Turn MLflow's and SQLAlchemy's errors inside the block into a `RegistryError`."""
    with explained(url):
        try:
            yield
        except _mlflow().exceptions.MlflowException as error:
            seen = error.message.partition("\n")[0]
            remedy = "if its tables are of another MLflow, take that one's minor version of mlflow-skinny"
            raise RegistryError(f"the registry at {shown(url)} refuses", seen=seen, remedy=remedy) from error
