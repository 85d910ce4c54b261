"""A candidate answers what clients have asked: it and the champion run over the request log, and are compared.

Both run anew, offline and on the same rows: what was masked in the log is masked for both, and answers of earlier
champions don't matter. One Ray task a file; a row on which the champion itself fails isn't compared.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tidepool import storage
from tidepool.artifact import Artifact, answer, open_artifact
from tidepool.errors import DataError, GateError, StorageError
from tidepool.recipe import Signature, TensorSpec
from tidepool.registry.entities import ModelVersion
from tidepool.serve.canary import disagree
from tidepool.serve.comparing import compared_outputs
from tidepool.serve.engine import OnnxEngine
from tidepool.serve.isolation import isolate
from tidepool.serve.protocol import Tensors
from tidepool.serve.requestlog import logged_files
from tidepool.serve.stacking import Stacking, split
from tidepool.settings import Settings
from tidepool.spec import CompareSpec, spec_of
from tidepool.telemetry.progress import Progress, quiet

MOST_VALUES = 20
"""A column with more values than this makes no slices."""
ROWS = 256
"""Rows that are answered together."""

Seen = Counter[tuple[str, str, str]]
"""Rows by column of the log, value in it, and what became of them: `rows` compared, `disagreed`, `failed` or `skipped`.
"""
ALL = ("", "")
"""Column and value of all rows."""


@dataclass(frozen=True)
class Part:
    """How many rows of a slice were compared, and on how many the candidate gave another answer, or none."""

    column: str
    value: str
    rows: int
    disagreed: int
    failed: int

    @property
    def disagreement(self) -> float:
        """The share of rows on which the candidate gave another answer, or none."""
        return (self.disagreed + self.failed) / self.rows


@dataclass(frozen=True)
class Report:
    """What came of a rehearsal."""

    champion: int
    candidate: int
    whole: Part
    slices: tuple[Part, ...]
    """The worst first."""
    skipped: int
    """Rows that lack an input, or on which the champion fails."""

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form."""

        def shown(part: Part) -> dict[str, Any]:
            return {**asdict(part), "disagreement": part.disagreement}

        counts = {key: value for key, value in shown(self.whole).items() if key not in ("column", "value")}
        slices = [shown(part) for part in self.slices]
        return {
            "champion": self.champion,
            "candidate": self.candidate,
            **counts,
            "skipped": self.skipped,
            "slices": slices,
        }

    def check(self, max_disagreement: float) -> None:
        """Use it as a gate.

        Raises:
            GateError: the candidate disagrees on a larger share of the rows.
        """
        if self.whole.disagreement > max_disagreement:
            seen = (
                f"{self.whole.disagreement:.4f}, {self.whole.disagreed + self.whole.failed} of {self.whole.rows} rows"
            )
            what = f"version {self.candidate} disagrees with version {self.champion}"
            raise GateError(what, seen=seen, allowed=max_disagreement, remedy="the slices above say where")


def rehearse(settings: Settings, name: str, version: int, progress: Progress = quiet) -> Report:
    """Run a version of a model over its request log, with a driver that is connected to a cluster.

    Raises:
        ModelNotFound: no such model or version, or it has no champion.
        DataError: nothing was logged that both can answer, or an input isn't in the log because it is sensitive.
    """
    import ray

    from tidepool.data.tasks import cpus_per_task, run_bounded
    from tidepool.registry.client import Registry

    model = Registry(settings.registry, settings.storage("artifacts")).model(name)
    champion, candidate = model.version(), model.version(version)
    artifact = open_artifact(candidate.uri, settings.root / "cache", candidate.digest)
    _check_inputs(artifact.signature)
    serve = spec_of(artifact.lineage["spec"], f"the lineage of {name} version {version}").serve
    folder = settings.storage(serve.request_log.folder, name)
    files = [file.path for file in logged_files(folder)]
    task = ray.remote(num_cpus=cpus_per_task())(compare_file)
    results = run_bounded(
        lambda path: [task.remote(folder, path, champion, candidate, serve.compare)], files, "replay", progress
    )
    seen: Seen = sum((counts for counts, _ in results), Counter())
    if not seen[*ALL, "rows"]:
        remedy = "register and deploy a version whose spec has serve.request_log.share, and wait for requests"
        raise DataError(
            "nothing was logged that can be compared", seen=f"{len(files)} files in {folder}", remedy=remedy
        )
    return _report(champion.version, candidate.version, seen)


def compare_file(folder: str, path: str, champion: ModelVersion, candidate: ModelVersion, compare: CompareSpec) -> Seen:
    """What two versions say to the rows of one file of the log in `folder`; a Ray task.

    Raises:
        StorageError: the file, or an artifact, can't be read.
    """
    store, _ = storage.filesystem(folder)
    try:
        with storage.explained("read", path), store.open_input_file(path) as file:
            table = pq.read_table(file)
    except StorageError:
        if any(file.path == path for file in logged_files(folder)):
            raise
        return Counter()  # the oldest files go while the log is written
    one, other = (_opened(version.uri, version.digest) for version in (champion, candidate))
    outputs = compared_outputs(one.signature, compare.outputs)
    slices = _slices(table, path)
    seen: Seen = Counter({(column, "", "too many"): 1 for column, values in slices.items() if not values})
    for start in range(0, len(table), ROWS):
        part = table.slice(start, ROWS)
        pairs = zip(_answers(one, part), _answers(other, part), strict=True)
        for row, (given, candidates) in enumerate(pairs, start):
            if given is None or candidates is None or isinstance(given, Exception):
                seen[*ALL, "skipped"] += 1
                continue
            failed = isinstance(candidates, Exception)
            differs = not isinstance(candidates, Exception) and disagree(given, candidates, compare.tolerance, outputs)
            for key in (ALL, *((column, values[row]) for column, values in slices.items() if values)):
                seen[*key, "rows"] += 1
                seen[*key, "failed"] += failed
                seen[*key, "disagreed"] += differs
    return seen


def _report(champion: int, candidate: int, seen: Seen) -> Report:
    keys = [(column, value) for column, value, what in seen if what == "rows"]
    parts = [Part(*key, *(seen[*key, what] for what in ("rows", "disagreed", "failed"))) for key in keys]
    values = Counter(column for column, _ in keys)
    few = {column for column, count in values.items() if 1 < count <= MOST_VALUES and not seen[column, "", "too many"]}
    slices = [part for part in parts if part.column in few]
    slices.sort(key=lambda part: (-part.disagreement, part.column, part.value))
    (whole,) = (part for part in parts if (part.column, part.value) == ALL)
    return Report(champion, candidate, whole, tuple(slices), seen[*ALL, "skipped"])


def _check_inputs(signature: Signature) -> None:
    hidden = [
        t.name for t in signature.inputs if signature.sensitive.get(t.name, "").partition(":")[0] in ("drop", "hash")
    ]
    if hidden:
        raise DataError("the log doesn't hold all inputs, some are sensitive", seen=", ".join(hidden))


def _slices(table: pa.Table, path: str) -> dict[str, list[str]]:
    """The text of each row's value in the columns that may make slices, neither floats nor lists; of those with too
    many values, nothing.
    """
    slices = {name: [value] * len(table) for name, _, value in (p.partition("=") for p in path.split("/")) if value}
    for name in table.column_names:
        kind = table[name].type
        plain = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_binary(kind)
        if name == "key" or (plain and name.startswith(("in.", "out."))):
            texts = [_text(value) for value in table[name].to_pylist()]
            slices[name] = texts if len(set(texts)) <= MOST_VALUES else []
    return slices


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


@functools.lru_cache(maxsize=4)
def _opened(uri: str, digest: str) -> _Version:
    return _Version(open_artifact(uri, Settings().root / "cache", digest))


class _Version:
    """A version that answers rows of the log."""

    def __init__(self, artifact: Artifact) -> None:
        self.signature, self.stacking = artifact.signature, Stacking(artifact.signature.inputs)
        engine = OnnxEngine(artifact.onnx)
        self.answer: Callable[[Tensors], Tensors] = functools.partial(
            answer, artifact.recipe(), artifact.preprocessing(), engine
        )


def _answers(version: _Version, table: pa.Table) -> list[Tensors | Exception | None]:
    """The answer to each row, or why there is none; None where the log lacks an input."""
    requests = _requests(table, version.signature.inputs)
    answers: list[Tensors | Exception | None] = [None] * len(requests)
    groups: dict[Any, list[int]] = {}
    for row, request in enumerate(requests):
        if request is not None:
            groups.setdefault(version.stacking.group(request), []).append(row)

    def run(part: Sequence[Tensors]) -> list[Tensors]:
        return split(version.answer(version.stacking.join(part)), [1] * len(part))

    for rows in groups.values():
        for row, outcome in zip(rows, isolate(run, [requests[row] or {} for row in rows]), strict=True):
            answers[row] = outcome
    return answers


def _requests(table: pa.Table, inputs: Sequence[TensorSpec]) -> list[Tensors | None]:
    columns = {spec: f"in.{spec.name}" for spec in inputs}
    if not set(columns.values()) <= set(table.column_names):
        return [None] * len(table)
    return [_request({spec: table[column][row] for spec, column in columns.items()}) for row in range(len(table))]


def _request(cells: dict[TensorSpec, pa.Scalar]) -> Tensors | None:
    if not all(cell.is_valid for cell in cells.values()):
        return None
    return {spec.name: np.array([cell.as_py()], spec.dtype) for spec, cell in cells.items()}
