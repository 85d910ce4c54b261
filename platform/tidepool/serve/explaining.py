"""Explanations of a served model, computed by the engine that answers, out of the way of those who want answers.

The rows of an explanation go through the version's batcher a few at a time, at the lowest priority: a request for an
answer waits for `STEP_S` of them at most.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any

from tidepool.errors import InvalidRequest
from tidepool.recipe import Signature, TensorSpec
from tidepool.serve import occlusion, protocol
from tidepool.serve.cache import DELIVERY
from tidepool.serve.dataplane import Dataplane, LoadedVersion
from tidepool.serve.occlusion import Explanation, Question
from tidepool.serve.pictures import picture
from tidepool.serve.protocol import MOST_PRIORITY, InferRequest, InferResponse, Tensors
from tidepool.serve.stacking import Stacking

STEP_S = 0.02
"""What a step of an explanation should take the engine at most; a single row may take longer."""
MOST_AT_ONCE = 64
TARGET = "target"
"""The output that names what was explained; an input of this name keeps it."""


@dataclass(frozen=True)
class Explained:
    """The explanation of one request, by one version."""

    loaded: LoadedVersion
    request: InferRequest
    explanation: Explanation

    def response(self, model: str) -> InferResponse:
        """In the protocol's form: a tensor of attributions for each input of numbers, and the targets.

        Raises:
            InvalidRequest: an output is asked for that there isn't.
        """
        signature = signature_of(self.loaded.signature, self.explanation)
        tensors: Tensors = {TARGET: self.explanation.targets, **self.explanation.attributions}
        outputs, binary = protocol.select_outputs(signature, self.request, tensors)
        about = {"digest": self.loaded.digest, "method": occlusion.METHOD, "output": self.explanation.output}
        return InferResponse(model, self.loaded.version, outputs, signature, self.request.id, about, binary)

    def picture(self) -> bytes:
        """As a PNG.

        Raises:
            InvalidRequest: no input is a picture.
        """
        return picture(self.loaded.signature, self.request.inputs, self.explanation)


async def explain(dataplane: Dataplane, request: InferRequest, version: str | None, key: str) -> Explained:
    """Explain the answer to one request; `key` is the id of the caller's API key.

    Raises:
        InvalidRequest: the tensors aren't the model's, or the parameters make no sense for it.
        UnknownModel: no such version.
        NotReady: nothing is loaded yet.
        Overloaded: too much waits already, for the request's own deadline or altogether.
    """
    loaded = dataplane.choose(version)
    known = {*occlusion.KNOWN, *DELIVERY}
    if unknown := [name for name in request.parameters if name not in known]:
        raise InvalidRequest("unknown parameter", seen=", ".join(unknown), allowed=", ".join(sorted(known)))
    protocol.check_inputs(loaded.signature, request.inputs)
    question = Question.of(loaded.signature, request.parameters)
    _, timeout_s = protocol.urgency(request.parameters)
    deadline = time.monotonic() + timeout_s if timeout_s else math.inf

    async def ask(inputs: Tensors, rows: int) -> Tensors:
        await asyncio.sleep(0)  # cheap runs happen on the event loop: let others have their turn
        return await loaded.batcher.run(inputs, rows, deadline, -MOST_PRIORITY, key)

    at_once = affordable(loaded, request.inputs)
    return Explained(loaded, request, await occlusion.explain(loaded.signature, request.inputs, question, ask, at_once))


def affordable(loaded: LoadedVersion, inputs: Tensors) -> int:
    """Rows like these that the engine answers within `STEP_S`, by what it has learned; 1 to `MOST_AT_ONCE`."""
    stacking, costs = Stacking(loaded.signature.inputs), loaded.batcher.costs
    group, rows = stacking.group(inputs), MOST_AT_ONCE
    while rows > 1 and (not costs.runs or costs.seconds(stacking.size(group, rows)) > STEP_S):
        rows //= 2
    return rows


def signature_of(signature: Signature, explanation: Explanation) -> Signature:
    """What an explanation's tensors are."""
    shapes: dict[str, Any] = {spec.name: spec.shape for spec in signature.inputs}
    explained = (TensorSpec(name, "FP32", shapes[name]) for name in explanation.attributions)
    return Signature(signature.inputs, (TensorSpec(TARGET, "INT64", (-1,)), *explained))
