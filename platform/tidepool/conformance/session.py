"""One server over one transport, and one of its models, as the cases see them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tidepool.conformance import tensors
from tidepool.conformance.case import Failed, Skipped
from tidepool.conformance.messages import Model, Refused, Request, Response, Server, Target
from tidepool.conformance.rest import RestTarget
from tidepool.conformance.rpc import GrpcTarget
from tidepool.conformance.tensors import Tensor


class Session:
    """What a case needs. What other cases rest on is asked once; where it fails, they are skipped."""

    def __init__(self, target: Target, model: str, sample: Sequence[Tensor] = (), other: Session | None = None) -> None:
        self.target, self.model, self._sample = target, model, tuple(sample)
        self.other = other
        """The same server over the other transport."""

    @property
    def rest(self) -> RestTarget:
        """The target, in a case for REST alone."""
        assert isinstance(self.target, RestTarget)
        return self.target

    @property
    def grpc(self) -> GrpcTarget:
        """The target, in a case for gRPC alone."""
        assert isinstance(self.target, GrpcTarget)
        return self.target

    @functools.cached_property
    def server(self) -> Server:
        """What the server says of itself."""
        try:
            return self.target.server()
        except (Refused, Failed) as error:
            raise Skipped(f"the server's metadata can't be read, see server.metadata: {error}") from None

    @functools.cached_property
    def metadata(self) -> Model:
        """What the server says of the model."""
        try:
            return self.target.model(self.model)
        except (Refused, Failed) as error:
            raise Skipped(f"the model's metadata can't be read, see model.metadata: {error}") from None

    @functools.cached_property
    def baseline(self) -> Response:
        """The answer to `request()`, which the other cases about inference rest on."""
        try:
            return self.target.infer(self.request())
        except (Refused, Failed) as error:
            raise Skipped(f"the model doesn't answer a made-up request, see infer.answer: {error}") from None

    @property
    def versions(self) -> tuple[str, ...]:
        """The versions that may be asked for."""
        if not self.metadata.versions:
            raise Skipped("the model lists no versions")
        return self.metadata.versions

    @property
    def batched(self) -> bool:
        """Whether the first axis of every tensor is free."""
        specs = (*self.metadata.inputs, *self.metadata.outputs)
        return all(spec.shape and spec.shape[0] == -1 for spec in specs)

    def request(self, rows: int = 1, seed: int = 0) -> Request:
        """A request that fits the model: made up, or the sample repeated to `rows` rows."""
        if self._sample:
            return Request(self.model, tuple(_tile(tensor, rows) if rows > 1 else tensor for tensor in self._sample))
        return Request(self.model, tuple(tensors.make(spec, rows, seed) for spec in self.metadata.inputs))

    def infer(self, request: Request, raw: bool = False) -> Response:
        """The answer to a request, once it is known that the model answers at all."""
        _ = self.baseline
        return self.target.infer(request, raw)

    def need_extension(self, name: str) -> None:
        """Skip the case unless the server advertises the extension."""
        if name not in self.server.extensions:
            raise Skipped(f"the server doesn't advertise {name}")

    def need_json(self) -> None:
        """Skip the case if an input has no JSON form."""
        if any(spec.datatype == "FP16" for spec in self.metadata.inputs):
            raise Skipped("the model takes FP16, which has no JSON form")


def _tile(tensor: Tensor, rows: int) -> Tensor:
    """The first row of a tensor, `rows` times."""
    row = list(tensors.rows(tensor, 0))
    return Tensor(tensor.name, tensor.datatype, (rows, *tensor.shape[1:]), row * rows)
