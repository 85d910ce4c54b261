"""What a server of the Open Inference Protocol does, whatever carries the requests.

The main path of a request is `Dataplane.infer`: choose the version, check the tensors, answer, select the outputs.
Versions live side by side; a request holds one `LoadedVersion` from beginning to end, so that no answer mixes two.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tidepool.artifact import Artifact, answer
from tidepool.errors import ClusterError, InvalidRequest, NotReady, TidepoolError, UnknownModel
from tidepool.recipe import Generates, Signature
from tidepool.serve import protocol
from tidepool.serve.batching import MAX_WAITING, Batcher
from tidepool.serve.cache import Cache, cache_key
from tidepool.serve.costs import calibrate
from tidepool.serve.engine import Engine, open_engine
from tidepool.serve.generating import Generating, Generation, Pieces, Prompt
from tidepool.serve.protocol import InferRequest, InferResponse, Parameters, Tensors
from tidepool.serve.stacking import Stacking
from tidepool.serve.statistics import Counts

if TYPE_CHECKING:
    from tidepool.serve.traffic import Traffic, Visit

WARM_UP_ROWS = 64
"""The largest batch that a version runs before its first request, to learn what batches cost."""


@dataclass(frozen=True)
class LoadedVersion:
    """One version of a model, in memory and warm."""

    version: str
    digest: str
    signature: Signature
    answer: Callable[[Tensors], Tensors]
    """Raw inputs to outputs, whatever else is waiting."""
    batcher: Batcher
    """The same for many requests at once."""
    counts: Counts = field(default_factory=Counts)
    generate: Callable[[str, Parameters], Generator[str, None, None]] | None = None
    """Text that goes on from a text, step by step, of recipes that generate."""
    engine: Engine | None = None
    """What answers; None of one that is made up."""
    uri: str = ""
    """Where its artifact is."""


def load_version(
    version: str, artifact: Artifact, slo_s: float = 0.1, max_waiting: int = MAX_WAITING, accelerator: str = "CPU"
) -> LoadedVersion:
    """Bring an artifact into memory and answer batches of growing size with it, so that the first client meets a warm
    one whose costs are known. `slo_s`: seconds within which 99 of 100 requests are to be answered.
    `max_waiting`: requests that may wait for others; at least one may. `accelerator`: what this replica holds.
    """
    recipe, preprocessing, engine = artifact.recipe(), artifact.preprocessing(), open_engine(artifact, accelerator)
    signature, run = artifact.signature, functools.partial(answer, recipe, preprocessing, engine)
    run(protocol.zeros(signature, 1))
    batcher = Batcher(run, Stacking(signature.inputs), slo_s, max_requests=max(1, max_waiting))
    calibrate(batcher.costs, lambda rows: run(protocol.zeros(signature, rows)), WARM_UP_ROWS, slo_s / 4)
    generate = functools.partial(recipe.generate, preprocessing, engine) if isinstance(recipe, Generates) else None
    return LoadedVersion(
        version, artifact.digest, signature, run, batcher, generate=generate, engine=engine, uri=artifact.uri
    )


@dataclass(frozen=True)
class Lineup:
    """The versions of one model that are loaded, and the one that answers by default. Replaced whole, never changed."""

    champion: str
    versions: Mapping[str, LoadedVersion] = field(default_factory=dict)
    traffic: Traffic | None = None
    """None: the champion answers every request that names no version, nobody else is asked, nothing is logged."""


class Dataplane:
    """Answers requests for one model."""

    def __init__(self, model: str, cache_bytes: int = 0) -> None:
        """`cache_bytes`: how much of its answers is kept; 0 for none."""
        self.model = model
        self._lineup: Lineup | None = None
        self._cache = Cache(cache_bytes) if cache_bytes else None
        self.generating = Generating()

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

    @property
    def versions(self) -> Mapping[str, LoadedVersion]:
        """The versions in memory: none, before the first is."""
        return {} if self._lineup is None else self._lineup.versions

    def held(self) -> AbstractAsyncContextManager[None]:
        """The versions stay in memory for the length of a block. Here they do in any case."""
        return nullcontext()

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

    def plainer(self, error: Exception, version: str | None) -> Exception:
        """What to tell of an error: of inputs that can't be read, what the version's signature says of them."""
        if isinstance(error, InvalidRequest) and error.told:
            with suppress(NotReady, UnknownModel):  # then there is no signature here to go by
                return protocol.plainer(error, self.signature(version))
        return error

    def signature(self, version: str | None) -> Signature:
        """What clients of a version, or of the champion, send and get.

        Raises:
            NotReady, UnknownModel: it isn't known.
        """
        return self.choose(version).signature

    async def infer(self, request: InferRequest, version: str | None = None, key: str = "") -> InferResponse:
        """Answer one request; `key` is the id of the caller's API key.

        Raises:
            InvalidRequest: the tensors aren't the model's.
            UnknownModel: no such version.
            NotReady: nothing is loaded yet.
            Overloaded: too much waits already, for the request's own deadline or altogether.
        """
        traffic = self.lineup.traffic
        visit = None if traffic is None else traffic.visit(request, version, key)
        chosen = self.choose(version if visit is None else visit.version)
        rows = protocol.check_inputs(chosen.signature, request.inputs)
        began = time.monotonic_ns()
        try:
            outputs = await self._outputs(chosen, request, rows, key)
        except BaseException as error:
            took = time.monotonic_ns() - began
            chosen.counts.failed(took)
            if visit is not None:
                visit.failed(chosen, rows, error, took)
            raise
        took = time.monotonic_ns() - began
        chosen.counts.answered(rows, took)
        if visit is not None:
            visit.answered(chosen, rows, outputs, took)
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

    def generate(self, prompt: Prompt, version: str | None = None, key: str = "") -> Generation:
        """The text that follows a prompt, none of it generated yet; `key` is the id of the caller's API key.

        Raises:
            UnknownModel: no such version.
            NotReady: nothing is loaded yet.
        """
        traffic, request = self.lineup.traffic, InferRequest({}, id=prompt.id, parameters=prompt.parameters)
        visit = None if traffic is None else traffic.visit(request, version, key)
        chosen = self.choose(version if visit is None else visit.version)
        if chosen.generate is None and visit is not None and not version:
            champion = self.choose(None)
            if champion.generate is not None:  # else nobody could ask for text, and no version is at fault
                visit.failed_to_generate(TidepoolError(f"version {chosen.version} doesn't generate"))
            chosen, visit = champion, None
        pieces = self._counted(self.generating.pieces(self.model, chosen, prompt), chosen, visit)
        return Generation(self.model, chosen, prompt, pieces)

    async def _counted(self, pieces: Pieces, chosen: LoadedVersion, visit: Visit | None) -> Pieces:
        """The same pieces; together they count as one request, of the time in which they were made."""
        took, began = 0, time.monotonic_ns()
        try:
            async with aclosing(pieces):
                async for piece in pieces:
                    took += time.monotonic_ns() - began
                    yield piece
                    began = time.monotonic_ns()
        except Exception as error:
            if not isinstance(error, InvalidRequest):
                chosen.counts.failed(took + time.monotonic_ns() - began)
            if visit is not None:
                visit.failed_to_generate(error)
            raise
        chosen.counts.answered(1, took + time.monotonic_ns() - began)
        if visit is not None:
            visit.generated()

    async def _outputs(self, chosen: LoadedVersion, request: InferRequest, rows: int, key: str) -> Tensors:
        priority, deadline = 0, math.inf
        if request.parameters:
            priority, timeout_s = protocol.urgency(request.parameters)
            deadline = time.monotonic() + timeout_s if timeout_s else math.inf
        if self._cache is None:
            return await chosen.batcher.run(request.inputs, rows, deadline, priority, key)
        compute = functools.partial(chosen.batcher.run, request.inputs, rows, deadline, priority, key)
        same = cache_key(self.model, chosen.digest, request.inputs, request.parameters)
        return await self._cache.get(same, compute)

    @property
    def is_busy(self) -> bool:
        """Whether a request may have to wait for others."""
        return any(loaded.batcher.is_busy for loaded in self.versions.values())

    @property
    def ran_s(self) -> float:
        """Seconds for which the engines of the present versions have run, apart from the event loop."""
        return sum(loaded.batcher.ran_s for loaded in self.versions.values()) + self.generating.ran_s

    @property
    def asked(self) -> int:
        """Requests that the present versions have had, failures among them."""
        return sum(loaded.counts.requests + loaded.counts.failures for loaded in self.versions.values())

    @property
    def backlog_s(self) -> float:
        """Predicted seconds until all that waits now is answered."""
        return sum(loaded.batcher.load.seconds for loaded in self.versions.values())

    @property
    def arrived(self) -> int:
        """Requests that have come to the engines of the present versions, those that wait among them."""
        return sum(loaded.batcher.arrived for loaded in self._lineup.versions.values()) if self._lineup else 0

    @property
    def pace(self) -> dict[str, float]:
        """What the champion's requests cost, as `Costs.pace` has it; {} while that isn't known."""
        return self._lineup.versions[self._lineup.champion].batcher.pace if self._lineup else {}

    def metadata(self, version: str | None = None) -> dict[str, Any]:
        """The model's metadata as the protocol has it."""
        chosen = self.choose(version)
        tensors = chosen.signature.to_json()
        return {
            "name": self.model,
            "versions": list(self.lineup.versions),
            "platform": chosen.engine.backend if chosen.engine else "tidepool_none",
            **{side: tensors[side] for side in ("inputs", "outputs")},
            "parameters": {"version": chosen.version, "digest": chosen.digest},
        }

    def statistics(self, version: str | None = None) -> dict[str, Any]:
        """What the versions in memory, or one of them, have done in this replica."""
        chosen = [self.choose(version)] if version else self.lineup.versions.values()
        stats = [one.counts.to_json(self.model, one.version, one.batcher.costs.runs) for one in chosen]
        document = {"model_stats": stats, **({"cache": asdict(self._cache.statistics)} if self._cache else {})}
        traffic = self.lineup.traffic
        return document if traffic is None else {**document, **traffic.to_json()}

    def check(self) -> None:
        """Whether this goes on.

        Raises:
            NotReady: nothing is loaded yet.
            ClusterError: an engine will never answer again.
        """
        for loaded in self.lineup.versions.values():
            if loaded.engine is not None and loaded.engine.fault:
                remedy = "nothing: the replica is replaced"
                raise ClusterError(f"version {loaded.version} can't answer", seen=loaded.engine.fault, remedy=remedy)

    def ready(self, version: str | None = None) -> bool:
        """Whether requests for this version would be answered."""
        try:
            return self.choose(version) is not None
        except (NotReady, UnknownModel):
            return False
