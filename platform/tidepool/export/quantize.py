"""int8 weights and activations, with scales that are fixed at export.

Activation scales come from training rows (static quantisation, QDQ form). ONNX Runtime's dynamic mode takes them from
the batch at hand instead: there, a row's answer depends on the rows that happen to share its batch (measured on
digits: logits move by up to 0.05), and a replica that batches requests would give one image several answers.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tidepool.errors import ExportError

OPERATORS = ("Conv", "Gather", "Gemm", "MatMul")
"""Those that hold weights. Quantising what lies between them costs accuracy and saves no bytes."""

ROWS, BATCH = 512, 64
"""Training rows that the activation ranges are taken from, and how many of them run at once."""


ERRORS_ONLY, WARNINGS = 3, 2
"""Severities of ONNX Runtime's logger; it starts out with WARNINGS."""


def quantize(source: Path, target: Path, calibration: Sequence[npt.NDArray[Any]]) -> None:
    """Write the float model `source` with int8 weights to `target`; all else stays float32.

    Weights get one scale a tensor; in models with convolutions one a channel, which cost a quarter less accuracy of
    the logits there and gained nothing elsewhere.
    `calibration`: features of training rows in the model's order; up to 512 of them, evenly spread, are used.

    Raises:
        ExportError: ONNX Runtime can't quantise this model.
    """
    import onnx
    import onnxruntime
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    onnxruntime.set_default_logger_severity(ERRORS_ONLY)  # it warns about graphs that it has made itself
    try:
        with tempfile.TemporaryDirectory() as scratch:
            prepared = Path(scratch) / "prepared.onnx"
            # Symbolic shape inference fails on some exported graphs and adds nothing here.
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            graph = onnx.load(prepared).graph
            quantization.quantize_static(
                str(prepared),
                str(target),
                _Rows([tensor.name for tensor in graph.input], calibration),
                op_types_to_quantize=list(OPERATORS),
                per_channel=any(node.op_type == "Conv" for node in graph.node),
                extra_options={"MatMulConstBOnly": True},
            )
    except OSError:
        raise
    except Exception as error:  # onnxruntime raises bare exceptions of many types
        raise ExportError(
            "stage quantize: the model can't be quantised",
            seen=f"{type(error).__name__}: {error}",
            remedy="set export.quantize to none",
        ) from error
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)


class _Rows:
    """Hands out calibration rows, batch by batch, as `onnxruntime.quantization` asks for them."""

    def __init__(self, names: Sequence[str], features: Sequence[npt.NDArray[Any]]) -> None:
        count = len(features[0])
        chosen = np.linspace(0, count - 1, min(count, ROWS)).astype(int)
        batches = [chosen[start : start + BATCH] for start in range(0, len(chosen), BATCH)]
        self._feeds = iter([dict(zip(names, [f[batch] for f in features], strict=True)) for batch in batches])

    def get_next(self) -> dict[str, npt.NDArray[Any]] | None:
        return next(self._feeds, None)
