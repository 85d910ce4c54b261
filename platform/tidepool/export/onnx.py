"""A torch network as an ONNX file, and that file at work in ONNX Runtime.

    torch.export -> ONNX -> strip what names this machine -> check -> same answers as torch at 1 row and at 5

The file runs wherever an ONNX runtime does: it needs neither this package nor torch.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import ExportError
from tidepool.evaluate.metrics import Arrays, Run, predict
from tidepool.recipe import Recipe, TensorSpec

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 20
ROWS = 5
RELATIVE, ABSOLUTE = 1e-3, 1e-4
"""float32 kernels of two libraries add in different orders; their answers differ by less than this."""


def write_onnx(network: torch.nn.Module, recipe: Recipe, sample: Sequence[npt.NDArray[Any]], path: Path) -> None:
    """Write `network` to `path`. `sample`: real features, at least one row, in the recipe's order.

    Tensors bear the recipe's names. Axis 0 is the axis `batch`; every other -1 axis is of any length, too.

    Raises:
        ExportError: the network can't be expressed in ONNX, or the file answers differently from torch.
    """
    import onnx
    import torch

    rows = [np.resize(values, (ROWS, *values.shape[1:])) for values in sample]
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                tuple(torch.from_numpy(values) for values in rows),
                dynamo=True,
                input_names=[spec.name for spec in recipe.features],
                output_names=[spec.name for spec in recipe.predictions],
                dynamic_shapes=tuple(_dynamic_axes(spec) for spec in recipe.features),
                opset_version=OPSET,
                verbose=False,
            )
            assert program is not None  # dynamo=True always gives one
            _rename_insides(program.model.graph)
            model = program.model_proto
        _strip(model)
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # torch.export, onnxscript and the checker raise dozens of types
        raise ExportError(
            "stage onnx: the network can't be exported",
            seen=_root_cause(error),
            allowed=f"operations that torch.export and ONNX opset {OPSET} know, for any length of the -1 axes",
            remedy="write the network without data-dependent Python branches, or correct the recipe's shapes",
        ) from error
    onnx.save(model, path)
    for count in (1, ROWS):
        _compare(network, path, [values[:count] for values in rows])


def open_onnx(path: Path) -> Run:
    """The ONNX file as a function, on CPU.

    Raises:
        ExportError: ONNX Runtime refuses the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises a type of its own for each cause
        raise ExportError("ONNX Runtime refuses the exported model", seen=error) from error
    names = [tensor.name for tensor in session.get_inputs()]

    def run(features: Sequence[npt.NDArray[Any]]) -> Arrays:
        answer: Arrays = session.run(None, dict(zip(names, features, strict=True)))
        return answer

    return run


def _dynamic_axes(spec: TensorSpec) -> dict[int, str]:
    free = [axis for axis, length in enumerate(spec.shape) if length == -1]
    return {axis: f"{spec.name}_{axis}" if axis else "batch" for axis in free}


def _root_cause(error: BaseException) -> str:
    while error.__cause__:
        error = error.__cause__
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _compare(network: torch.nn.Module, path: Path, features: Arrays) -> None:
    for ours, theirs in zip(predict(network, features), open_onnx(path)(features), strict=True):
        if ours.shape != theirs.shape or not np.allclose(ours, theirs, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            raise ExportError(
                f"stage onnx: ONNX Runtime and torch differ on {len(features[0])} rows",
                seen=f"shape {theirs.shape}" if ours.shape != theirs.shape else float(np.abs(ours - theirs).max()),
                allowed=f"shape {ours.shape}, {RELATIVE:g} relative plus {ABSOLUTE:g}",
                remedy="check the network for randomness and for branches on shapes",
            )


def _rename_insides(graph: Any) -> None:
    """Leave the names of the inputs and outputs to them: values inside have those of operators and of
    parameters, as "embedding"."""
    ends = (*graph.inputs, *graph.outputs)
    taken, kept = {value.name for value in ends}, {id(value) for value in ends}
    computed = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*graph.initializers.values(), *computed):
        if value.name in taken and id(value) not in kept:
            value.name = f"{value.name}.inside"


def _strip(model: onnx.ModelProto) -> None:
    """Take out the exporter's notes: stack traces with this machine's paths, a good part of a small file."""
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        _strip_graph(graph)


def _strip_graph(graph: Any) -> None:
    tensors = [] if not hasattr(graph, "initializer") else [*graph.input, *graph.output, *graph.initializer]
    for part in (graph, *tensors, *graph.node, *graph.value_info):
        del part.metadata_props[:]
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        if attribute.HasField("g"):  # the body of an If or a Loop
            _strip_graph(attribute.g)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's warnings, which are about its own insides and about packages that are not needed."""
    logs = [logging.getLogger(name) for name in ("torch", "onnxscript", "onnx_ir")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
