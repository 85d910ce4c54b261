"""One YAML file describes a model's life: `Spec`, and how it is loaded.

Every section is frozen and refuses unknown keys; `load_spec` turns each failure into one `SpecError` that names
the key, the value seen, what is allowed and what to do.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tidepool import document
from tidepool.errors import SpecError

NAME = re.compile(r"(?!gateway$)[a-z0-9]([a-z0-9_-]{0,61}[a-z0-9])?")


class Section(BaseModel):
    """A frozen part of the spec that refuses unknown keys and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _as_range(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return (value, value) if isinstance(value, int) and not isinstance(value, bool) else value


def _ordered(bounds: tuple[int, int]) -> tuple[int, int]:
    if not 0 <= bounds[0] <= bounds[1] or bounds[1] == 0:
        raise ValueError("needs 0 <= min <= max, and a max of at least 1")
    return bounds


Bounds = Annotated[
    tuple[int, int],
    BeforeValidator(_as_range),
    AfterValidator(_ordered),
    Field(description="One integer, or [min, max]."),
]


class Rule(Section):
    """One gate rule, written as an operator and a number: `">= 0.95"`."""

    compare: Literal[">=", "<=", ">", "<", "=="]
    bound: float

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, text: Any) -> Any:
        if not isinstance(text, str):
            return text
        match = re.fullmatch(r"\s*(>=|<=|==|>|<)\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*", text)
        if not match:
            raise ValueError('needs an operator and a number, e.g. ">= 0.95"')
        return {"compare": match[1], "bound": float(match[2])}

    def holds(self, value: float) -> bool:
        """Whether `value` satisfies the rule; NaN satisfies none."""
        return _OPERATORS[self.compare](value, self.bound)

    def __str__(self) -> str:
        return f"{self.compare} {self.bound:g}"


_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
}


class DataSpec(Section):
    """Where the rows come from and how they are split."""

    source: str = Field(description='"builtin:<name>", or a path or URI to Parquet, CSV, JSON lines, text or images.')
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of rows held out for evaluation.")
    seed: int = Field(0, ge=0, description="Seed of the split.")


class TrainSpec(Section):
    """How the model is trained. Durations in seconds."""

    num_workers: Bounds = Field((1, 1), description="Data-parallel train workers: one integer, or [min, max].")
    accelerator: str = Field("auto", description='"auto", "CPU", "GPU", "TPU" or the name of a custom resource.')
    strategy: Literal["ddp"] = Field("ddp", description="How workers share the model.")
    resize: Literal["live", "segments"] = Field("live", description="How a run in the pool changes its workers.")
    epochs: int = Field(10, ge=1, description="Passes over the training rows.")
    global_batch_size: int = Field(64, ge=1, description="Samples a step, over all workers together.")
    learning_rate: float = Field(0.05, gt=0, description="Peak learning rate of the optimizer.")
    checkpoint_every_s: float = Field(30.0, gt=0, description="Seconds between two checkpoints.")
    max_failures: int = Field(3, ge=0, description="Worker failures survived before the run fails.")
    seed: int = Field(0, ge=0, description="Seed of weights, sample order and dropout.")


class EvaluateSpec(Section):
    """What a model must reach on the held-out rows."""

    gate: dict[str, Rule] = Field(
        default_factory=dict,
        description='Metric to rule, e.g. accuracy: ">= 0.95"; <metric>_vs_champion is the difference to the champion.',
    )
    promote: bool = Field(
        True, description="Whether a version that meets it becomes champion; if not, it is registered as challenger."
    )


class ExportSpec(Section):
    """How the trained model is made small."""

    prune: float = Field(0.0, ge=0, lt=1, description="Share of weights set to zero, smallest magnitude first.")
    quantize: Literal["none", "int8"] = Field("none", description="Weight format of the exported model.")
    format: Literal["onnx"] = Field("onnx", description="Format that the execution engine loads.")
    max_metric_drop: float = Field(0.01, ge=0, description="Largest loss in any gated metric through export.")
    parity_tolerance: float = Field(
        1e-3, gt=0, description="How far answers to the golden rows may be from the trained network's."
    )


class CompareSpec(Section):
    """How the answers of two versions are compared."""

    outputs: list[str] = Field(
        default_factory=list, description="Outputs to compare; none named: those that aren't floats, or else all."
    )
    tolerance: float = Field(0.01, ge=0, description="By how much floats may differ and still be equal.")


class CanarySpec(Section):
    """What a canary must keep, as shares over 0 and under 1 of its requests; a rule that is null isn't judged."""

    decide: bool = Field(False, description="Promote a canary that keeps the rules, and end one that breaks them.")
    max_error_rate: float | None = Field(0.01, gt=0, lt=1, description="Share of requests that may fail.")
    p99_ms: float | None = Field(None, gt=0, description="What 99 % of its answers must not take longer than.")
    max_disagreement: float | None = Field(
        None, gt=0, lt=1, description="Share of answers that may differ from the champion's."
    )
    min_requests: int = Field(200, ge=0, description="Answers before it is promoted.")
    min_s: float = Field(60.0, ge=0, description="Seconds before it is promoted: some failures need time.")
    window_s: float = Field(60.0, gt=0, description="Seconds of a window, each of which is judged by itself too.")
    alpha: float = Field(0.05, gt=0, lt=1, description="Probability of a wrong judgement, for each rule.")


class RequestLogSpec(Section):
    """A sample of requests and answers, as Parquet."""

    share: float = Field(0.0, ge=0, le=1, description="Share of the requests that are logged; 0 for none.")
    folder: str = Field("requests", pattern=r"^\w[\w-]*$", description="Folder below the storage.")
    max_mb: float = Field(256.0, gt=0, description="Megabytes of files that are kept; the oldest go first.")
    every_s: float = Field(60.0, gt=0, description="Seconds until what was gathered is written.")


class ServeSpec(Section):
    """How the model is served."""

    placement: Literal["dedicated", "shared"] = Field(
        "dedicated", description="Replicas of its own, or those that all shared models have together."
    )
    prewarm: bool = Field(False, description="A shared model: loaded before the first request.")
    num_replicas: Bounds = Field((1, 1), description="Replicas: one integer, or [min, max] to autoscale.")
    num_cpus: float = Field(0.25, ge=0, description="Logical CPUs that a replica reserves.")
    slo_p99_ms: float = Field(100.0, gt=0, description="Latency that 99 % of answers must meet, in milliseconds.")
    accelerator: str = Field("auto", description='"auto", "CPU", "GPU", "TPU" or the name of a custom resource.')
    auth: Literal["api_key", "jwt", "none"] = Field(
        "api_key", description="How callers prove who they are; jwt takes tokens as well as keys."
    )
    max_ongoing_requests: int = Field(64, ge=1, description="Requests that a replica handles at once.")
    max_queued_requests: int = Field(512, ge=-1, description="Requests that may wait; -1 for no bound.")
    cache_mb: float = Field(0.0, ge=0, description="Answers that a replica keeps, in megabytes; 0 for none.")
    max_body_mb: float = Field(64.0, gt=0, description="Largest request body, in megabytes.")
    compare: CompareSpec = CompareSpec()
    canary: CanarySpec = CanarySpec()
    request_log: RequestLogSpec = RequestLogSpec()

    @model_validator(mode="after")
    def _shared_models_have_no_replicas(self) -> Self:
        if self.placement == "shared" and (self.num_replicas != (1, 1) or self.accelerator not in ("auto", "CPU")):
            raise ValueError("num_replicas and accelerator are not for shared models: TIDEPOOL_SHARED_REPLICAS is")
        return self


class PoolSpec(Section):
    """How the model's work ranks in the pool."""

    priority: int = Field(0, ge=-100, le=100, description="Higher goes first.")


class Spec(Section):
    """A model's life: data, training, evaluation, export, serving."""

    name: str = Field(description="Name of the registered model and of its application.")
    recipe: str = Field(description='"package.module:Class" of the recipe.')
    params: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the recipe.")
    data: DataSpec
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()
    export: ExportSpec = ExportSpec()
    serve: ServeSpec = ServeSpec()
    pool: PoolSpec = PoolSpec()

    @field_validator("name")
    @classmethod
    def _name_fits_urls(cls, name: str) -> str:
        if not NAME.fullmatch(name):
            raise ValueError("1 to 63 of a-z 0-9 - _, a letter or digit at both ends, and not `gateway`")
        return name

    def digest(self, *sections: str) -> str:
        """Hex sha256 of the named sections (all if none is named): equal specs, equal digests."""
        chosen = self.model_dump(mode="json", include=set(sections) or None)
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def load_spec(path: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """Read a spec.yaml and apply `a.b=c` overrides, whose values are parsed as YAML.

    Raises:
        SpecError: no such file, not YAML, unknown key, wrong type or value out of bounds.
    """
    read = document.read(Path(path))
    for text in overrides:
        document.override(read, text)
    return spec_of(read, str(path), overrides)


def spec_of(content: Mapping[str, Any], where: str, overrides: Sequence[str] = ()) -> Spec:
    """The spec in a document, which `where` names in messages; `overrides` are the `a.b=c` that are in it already.

    Raises:
        SpecError: unknown key, wrong type or value out of bounds.
    """
    try:
        return Spec.model_validate(content)
    except ValidationError as error:
        raise _explain(error, where, overrides) from None


def _explain(error: ValidationError, where: str, overrides: Sequence[str]) -> SpecError:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    where = _culprit(key, where, overrides)
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"][:-1])
        close = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        remedy = f"did you mean {close[0]}?" if close else "remove it"
        return SpecError(f"unknown key {key} in {where}", seen=key, allowed=", ".join(known), remedy=remedy)
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    seen = "nothing" if first["type"] == "missing" else repr(first.get("input"))
    return SpecError(
        f"{key or 'the spec'} in {where} is not valid{more}",
        seen=seen if len(seen) < 200 else seen[:200] + "...",
        allowed=message[0].lower() + message[1:],
        remedy="correct it, or see `tidepool schema`",
    )


def _culprit(key: str, where: str, overrides: Sequence[str]) -> str:
    """The last override that set `key`, or what it is in, or else the document; and what was set inside `key` then."""
    inside: list[str] = []
    for text in overrides:
        name = text.partition("=")[0]
        if f"{key}.".startswith(f"{name}."):
            where, inside = f"--set {text}", []
        elif name.startswith(f"{key}."):
            inside.append(f"--set {text}")
    return " with ".join([where, *inside])


def _known_keys(location: Sequence[str | int]) -> list[str]:
    model: type[BaseModel] = Spec
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return []
        model = annotation
    return sorted(model.model_fields)
