"""Explanations of a served model, out of the way of those who want answers.

By occlusion they are computed by the engine that answers: the rows of an explanation go through the version's batcher a
few at a time, at the lowest priority: a request for an answer waits for `STEP_S` of them at most. By integrated
gradients, a process beside the replica computes them.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import Any

from tidepool.errors import InvalidRequest
from tidepool.evaluate import attributions
from tidepool.recipe import Signature, TensorSpec
from tidepool.serve import occlusion, protocol
from tidepool.serve.cache import DELIVERY
from tidepool.serve.dataplane import Dataplane, LoadedVersion
from tidepool.serve.gradients import Gradients, Question
from tidepool.serve.occlusion import Explanation
from tidepool.serve.pictures import picture
from tidepool.serve.protocol import MOST_PRIORITY, InferRequest, InferResponse, Tensors
from tidepool.serve.queueing import try_later
from tidepool.serve.stacking import Stacking

STEP_S = 0.02
"""What a step of an explanation should take the engine at most; a single row may take longer."""
MOST_AT_ONCE = 64
LONGEST_START_S = 5.0
"""After which the process that differentiates is there."""
TARGET = "target"
"""The output that names what was explained; an input of this name keeps it."""
KNOWN = {
    occlusion.METHOD: {"method", *occlusion.KNOWN, *DELIVERY},
    attributions.METHOD: {"method", "output", "target", *DELIVERY},
}
"""The parameters that each method knows."""


@dataclass(frozen=True)
class Explained:
    """The explanation of one request, by one version."""

    loaded: LoadedVersion
    request: InferRequest
    method: str
    explained: Signature
    """Its inputs are what the explanation is of: the model's, or its features."""
    values: Tensors
    """Of those."""
    explanation: Explanation

    def response(self, model: str) -> InferResponse:
        """In the protocol's form: a tensor of attributions for each input of numbers, and the targets.

        Raises:
            InvalidRequest: an output is asked for that there isn't.
        """
        signature = signature_of(self.explained, self.explanation)
        tensors: Tensors = {TARGET: self.explanation.targets, **self.explanation.attributions}
        outputs, binary = protocol.select_outputs(signature, self.request, tensors)
        about = {"digest": self.loaded.digest, "method": self.method, "output": self.explanation.output}
        return InferResponse(model, self.loaded.version, outputs, signature, self.request.id, about, binary)

    def picture(self) -> bytes:
        """As a PNG.

        Raises:
            InvalidRequest: no input is a picture.
        """
        return picture(self.explained, self.values, self.explanation)


async def explain(
    dataplane: Dataplane, request: InferRequest, version: str | None, key: str, gradients: Gradients
) -> Explained:
    """Explain the answer to one request; `key` is the id of the caller's API key.

    Raises:
        InvalidRequest: the tensors aren't the model's, or the parameters make no sense for it.
        UnknownModel: no such version.
        NotReady: nothing is loaded yet.
        Overloaded: too much waits already, for the request's own deadline or altogether.
    """
    loaded = dataplane.choose(version)
    method = request.parameters.get("method", occlusion.METHOD)
    if not isinstance(method, str) or method not in KNOWN:
        raise InvalidRequest("no such method", seen=method, allowed=", ".join(KNOWN))
    if unknown := [name for name in request.parameters if name not in KNOWN[method]]:
        raise InvalidRequest("unknown parameter", seen=", ".join(unknown), allowed=", ".join(sorted(KNOWN[method])))
    protocol.check_inputs(loaded.signature, request.inputs)
    if method == attributions.METHOD:
        return await _differentiate(loaded, request, gradients)
    return await _occlude(loaded, request, key)


async def _differentiate(loaded: LoadedVersion, request: InferRequest, gradients: Gradients) -> Explained:
    prediction, target = request.parameters.get("output"), request.parameters.get("target")
    for name, value, kind in (("output", prediction, str), ("target", target, int)):
        if value is not None and type(value) is not kind:
            raise InvalidRequest(f"parameter {name} is not {'a name' if kind is str else 'an index'}", seen=value)
    _, timeout_s = protocol.urgency(request.parameters)
    try:
        async with asyncio.timeout(timeout_s or None):
            found = await gradients.ask(Question(loaded.uri, loaded.digest, request.inputs, prediction, target))
    except TimeoutError:
        raise try_later("the deadline passed before it was explained", LONGEST_START_S) from None
    explanation = Explanation(found.attributions, found.prediction, found.targets)
    return Explained(loaded, request, attributions.METHOD, Signature(found.specs, ()), found.values, explanation)


async def _occlude(loaded: LoadedVersion, request: InferRequest, key: str) -> Explained:
    question = occlusion.Question.of(loaded.signature, request.parameters)
    _, timeout_s = protocol.urgency(request.parameters)
    deadline = time.monotonic() + timeout_s if timeout_s else math.inf

    async def ask(inputs: Tensors, rows: int) -> Tensors:
        await asyncio.sleep(0)  # cheap runs happen on the event loop: let others have their turn
        return await loaded.batcher.run(inputs, rows, deadline, -MOST_PRIORITY, key)

    at_once = affordable(loaded, request.inputs)
    explanation = await occlusion.explain(loaded.signature, request.inputs, question, ask, at_once)
    return Explained(loaded, request, occlusion.METHOD, loaded.signature, request.inputs, explanation)


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
