"""What a server of the Open Inference Protocol does, whatever carries the requests.

The main path of a request is `Dataplane.infer`: choose the version, check the tensors, answer, select the outputs.
Versions live side by side; a request holds one `LoadedVersion` from beginning to end, so that no answer mixes two.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tidepool.artifact import Artifact, answer
from tidepool.errors import NotReady, UnknownModel
from tidepool.recipe import Preprocessing, Recipe, Signature
from tidepool.serve import protocol
from tidepool.serve.engine import Engine, OnnxEngine
from tidepool.serve.protocol import InferRequest, InferResponse, Tensors

BLOCKING_S = 0.002
"""A version whose warm answer takes longer runs in a thread, so that it doesn't hold up the event loop."""


@dataclass(frozen=True)
class LoadedVersion:
    """One version of a model, in memory and warm."""

    version: str
    digest: str
    recipe: Recipe
    preprocessing: Preprocessing
    engine: Engine
    signature: Signature
    warm_seconds: float = 0.0
    """Seconds that a warm answer of one row took."""

    def answer(self, inputs: Tensors) -> Tensors:
        """Raw inputs to outputs."""
        return answer(self.recipe, self.preprocessing, self.engine, inputs)


def load_version(version: str, artifact: Artifact) -> LoadedVersion:
    """Bring an artifact into memory and answer two requests with it, so that the first client meets a warm one."""
    loaded = LoadedVersion(
        version=version,
        digest=artifact.digest,
        recipe=artifact.recipe(),
        preprocessing=artifact.preprocessing(),
        engine=OnnxEngine(artifact.onnx),
        signature=artifact.signature,
    )
    row = protocol.zeros(artifact.signature, 1)
    loaded.answer(row)
    began = time.perf_counter()
    loaded.answer(row)
    return LoadedVersion(**{**vars(loaded), "warm_seconds": time.perf_counter() - began})


@dataclass(frozen=True)
class Lineup:
    """The versions of one model that are loaded, and the one that answers by default. Replaced whole, never changed."""

    champion: str
    versions: Mapping[str, LoadedVersion] = field(default_factory=dict)


class Dataplane:
    """Answers requests for one model."""

    def __init__(self, model: str) -> None:
        self.model = model
        self._lineup: Lineup | None = None

    def flip(self, lineup: Lineup) -> None:
        """Answer with `lineup` from the next request on."""
        self._lineup = lineup

    @property
    def lineup(self) -> Lineup:
        """The versions in memory.

        Raises:
            NotReady: none is loaded yet.
        """
        if self._lineup is None:
            raise NotReady(f"{self.model} is still being loaded", remedy="try again in a moment")
        return self._lineup

    def choose(self, version: str | None) -> LoadedVersion:
        """The version asked for, or the champion.

        Raises:
            UnknownModel: that version isn't loaded here.
        """
        lineup = self.lineup
        loaded = lineup.versions.get(version or lineup.champion)
        if loaded is None:
            raise UnknownModel(
                f"version {version} of {self.model} is not served", seen=version, allowed=", ".join(lineup.versions)
            )
        return loaded

    async def infer(self, request: InferRequest, version: str | None = None) -> InferResponse:
        """Answer one request.

        Raises:
            InvalidRequest: the tensors aren't the model's.
            UnknownModel: no such version.
            NotReady: nothing is loaded yet.
        """
        chosen = self.choose(version)
        protocol.check_inputs(chosen.signature, request.inputs)
        if chosen.warm_seconds > BLOCKING_S:
            outputs = await asyncio.to_thread(chosen.answer, request.inputs)
        else:
            outputs = chosen.answer(request.inputs)
        selected, binary = protocol.select_outputs(chosen.signature, request, outputs)
        return InferResponse(
            model=self.model,
            version=chosen.version,
            outputs=selected,
            signature=chosen.signature,
            id=request.id,
            parameters={"digest": chosen.digest},
            binary=binary,
        )

    def metadata(self, version: str | None = None) -> dict[str, Any]:
        """The model's metadata as the protocol has it."""
        chosen = self.choose(version)
        return {
            "name": self.model,
            "versions": list(self.lineup.versions),
            "platform": protocol.PLATFORM,
            **chosen.signature.to_json(),
            "parameters": {"version": chosen.version, "digest": chosen.digest},
        }

    def ready(self, version: str | None = None) -> bool:
        """Whether requests for this version would be answered."""
        try:
            return self.choose(version) is not None
        except (NotReady, UnknownModel):
            return False
