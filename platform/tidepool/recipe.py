"""What a user writes: one recipe file per model, and the contract that it keeps.

A recipe says what clients send and get (`signature`), how raw rows become tensors (`preprocessing`, fitted once on
the training rows, the same object in Ray Data and in the replica), the network, its loss and its metrics. Import
torch inside `network` and `loss`: a replica that answers through ONNX Runtime imports the recipe as well, and is a
second faster and hundreds of megabytes smaller without torch.
"""

from __future__ import annotations

import dataclasses
import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from tidepool.errors import RecipeError

if TYPE_CHECKING:
    import pyarrow as pa
    import torch

Batch = Mapping[str, npt.NDArray[Any]]
"""Column name to array; axis 0 counts the rows and is equally long in every column."""

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"INT{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    "BYTES": np.dtype(np.object_),
}
"""Open Inference Protocol datatype to numpy dtype; BYTES holds Python `bytes`."""


@dataclass(frozen=True)
class TensorSpec:
    """Name, Open Inference Protocol datatype and shape of a tensor; -1 is an axis of any length, axis 0 the batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    picture: tuple[int, ...] | None = None
    """What a row is as a picture, if it is one and `shape` doesn't say so: (height, width), or with 3 channels last or
    first."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        object.__setattr__(self, "picture", None if self.picture is None else tuple(self.picture))
        if self.datatype not in DATATYPES:
            raise RecipeError(
                f"tensor {self.name} has an unknown datatype",
                seen=self.datatype,
                allowed=", ".join(DATATYPES),
            )
        if self.picture is not None and -1 not in self.shape[1:] and prod(self.picture) != prod(self.shape[1:]):
            raise RecipeError(f"tensor {self.name} is no such picture", seen=self.picture, allowed=self.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The numpy dtype of the tensor's elements."""
        return DATATYPES[self.datatype]


@dataclass(frozen=True)
class Signature:
    """The tensors that a client sends and gets back."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sensitive: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tensors whose values in requests and answers are never written down as they are, each with its rule: `drop`
    leaves it out, `hash` writes a keyed hash, `pattern:<regular expression>` blots out what matches."""

    def __post_init__(self) -> None:
        names = [tensor.name for tensor in (*self.inputs, *self.outputs)]
        for name, rule in self.sensitive.items():
            if name not in names:
                raise RecipeError("no such tensor to keep secret", seen=name, allowed=", ".join(names))
            if rule not in ("drop", "hash") and not rule.startswith("pattern:"):
                allowed = "drop, hash, pattern:<expression>"
                raise RecipeError(f"tensor {name} has no such rule", seen=rule, allowed=allowed)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready form: tensor metadata as in the Open Inference Protocol, and what is sensitive."""
        tensors = {
            side: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in getattr(self, side)]
            for side in ("inputs", "outputs")
        }
        return {**tensors, **({"sensitive": dict(self.sensitive)} if self.sensitive else {})}

    @property
    def pictures(self) -> dict[str, tuple[int, ...]]:
        """Inputs that say what they are as a picture."""
        return {spec.name: spec.picture for spec in self.inputs if spec.picture is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any], pictures: Mapping[str, tuple[int, ...]] | None = None) -> Self:
        """The inverse of `to_json`, which has no room for `pictures`."""
        known = pictures or {}
        inputs, outputs = (
            tuple(
                TensorSpec(
                    t["name"], t["datatype"], tuple(t["shape"]), known.get(t["name"]) if side == "inputs" else None
                )
                for t in document[side]
            )
            for side in ("inputs", "outputs")
        )
        return cls(inputs, outputs, document.get("sensitive", {}))


class MapReduce(Protocol):
    """`fit`'s view of the training rows: `tidepool.data.mapreduce.map_reduce` with its source already given."""

    def __call__(
        self,
        map: Callable[[pa.Table], pa.Table],
        reduce: Callable[[pa.Table], pa.Table],
        combine: Callable[[pa.Table], pa.Table] | None = None,
    ) -> pa.Table: ...


class Preprocessing(ABC):
    """Raw columns to the tensors that the network takes. Subclasses are frozen dataclasses of JSON-ready fields."""

    @classmethod
    @abstractmethod
    def fit(cls, map_reduce: MapReduce) -> Self:
        """Learn the fields from the training rows. Axis 0 of the rows is spread over the cluster."""

    @abstractmethod
    def apply(self, batch: Batch) -> dict[str, npt.NDArray[Any]]:
        """Raw feature columns (the signature's inputs) to the network's inputs; row i in gives row i out."""

    def state(self) -> dict[str, Any]:
        """The fitted fields, JSON-ready; `type(self)(**state)` is equal to `self`."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


class Run(Protocol):
    """The network in a replica: features in the recipe's order to predictions in the recipe's order."""

    def __call__(self, features: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]: ...


@runtime_checkable
class Generates(Protocol):
    """What a recipe has besides if its model generates text: `generate` and `generate_stream` answer with it."""

    def generate(
        self, preprocessing: Preprocessing, run: Run, text: str, parameters: Mapping[str, Any]
    ) -> Generator[str, None, None]:
        """Go on from `text`, a piece at a time. The request's `parameters` are the client's: raise InvalidRequest where
        one makes no sense. Each step happens in a thread of the replica's, and should take milliseconds; a client that
        goes away closes the generator.
        """
        ...


@dataclass(frozen=True)
class ColumnCheck:
    """What a raw column must hold: an Arrow-style type name and, for numbers, an inclusive range."""

    dtype: str
    """e.g. "float32", "int64", "string"; fixed-length vectors as "float32[64]"."""
    minimum: float | None = None
    maximum: float | None = None
    nullable: bool = False


class Recipe(ABC):
    """One model, from raw rows to answers. Keyword arguments of the constructor are the spec's `params`."""

    signature: ClassVar[Signature]
    """What a client sends and gets."""
    columns: ClassVar[Mapping[str, ColumnCheck]]
    """Raw columns: the signature's inputs and the target."""
    target: ClassVar[str]
    """The raw column that holds the answer."""
    preprocessing: ClassVar[type[Preprocessing]]
    """How raw features become the network's inputs."""
    features: ClassVar[tuple[TensorSpec, ...]]
    """The network's inputs, in the order of `network().forward`."""
    predictions: ClassVar[tuple[TensorSpec, ...]]
    """The network's outputs, in order."""

    def builtin(self, name: str) -> pa.Table:
        """The rows of `data.source: "builtin:<name>"`."""
        remedy = "give the recipe a method builtin, or name files in data.source"
        raise RecipeError(f"{type(self).__name__} has no built-in data", seen=f"builtin:{name}", remedy=remedy)

    @abstractmethod
    def network(self) -> torch.nn.Module:
        """A fresh network; called under the run's seed."""

    @abstractmethod
    def loss(self, predictions: tuple[torch.Tensor, ...], target: torch.Tensor) -> torch.Tensor:
        """The mean loss of a batch, a scalar."""

    @abstractmethod
    def optimizer(self, network: torch.nn.Module, learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer of one run."""

    @abstractmethod
    def metrics(self, predictions: Batch, target: npt.NDArray[Any]) -> dict[str, float]:
        """Metrics of all held-out rows together."""

    @abstractmethod
    def postprocess(self, predictions: Batch) -> dict[str, npt.NDArray[Any]]:
        """The network's outputs to the signature's outputs, in numpy."""


def load_recipe(path: str, params: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe at `"package.module:Class"`, made with `params`.

    Raises:
        RecipeError: no such module or class, a module that fails, a class that is no recipe, or params it doesn't take.
    """
    module_name, _, class_name = path.partition(":")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise RecipeError("not the path of a recipe", seen=path, allowed="package.module:Class")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            seen, remedy = error.name or error, "install it where jobs and replicas run"
            raise RecipeError(f"{module_name} needs a package that is missing", seen=seen, remedy=remedy) from error
        raise RecipeError(
            "no such recipe module",
            seen=path,
            remedy="check spec.recipe, and that its folder is on PYTHONPATH",
        ) from None
    except Exception as error:  # whatever a user's module raises on import
        seen, remedy = f"{type(error).__name__}: {error}", f"python -c 'import {module_name}' shows where"
        raise RecipeError(f"{module_name} can't be imported", seen=seen, remedy=remedy) from error
    kind = getattr(module, class_name, None)
    if not (isinstance(kind, type) and issubclass(kind, Recipe)):
        found = [
            n for n, v in vars(module).items() if isinstance(v, type) and issubclass(v, Recipe) and v is not Recipe
        ]
        raise RecipeError("no such recipe", seen=path, allowed=", ".join(f"{module_name}:{n}" for n in found))
    try:
        return kind(**(params or {}))
    except TypeError as error:
        raise RecipeError(f"{path} does not take these params", seen=dict(params or {}), allowed=str(error)) from None
