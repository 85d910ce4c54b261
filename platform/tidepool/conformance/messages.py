"""Requests and answers, whatever carries them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from tidepool.conformance.case import Transport
from tidepool.conformance.tensors import Spec, Tensor


@dataclass(frozen=True)
class Server:
    """What a server says of itself."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """What a server says of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[Spec, ...]
    outputs: tuple[Spec, ...]


@dataclass(frozen=True)
class Request:
    """An inference request, well formed or not."""

    model: str
    inputs: tuple[Tensor, ...]
    version: str = ""
    id: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    """Empty asks for all."""


@dataclass(frozen=True)
class Response:
    """An answer to an inference request."""

    model: str
    version: str
    id: str
    outputs: tuple[Tensor, ...]


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, status: str, message: str, blames_client: bool, well_formed: bool) -> None:
        super().__init__(f"refused with {status}: {message}")
        self.status, self.message = status, message
        self.blames_client = blames_client
        """The status says that the request is at fault."""
        self.well_formed = well_formed
        """The error has the form that the protocol gives it."""


class Target(Protocol):
    """A server, over one transport. Every call raises `Refused` for an error, `Failed` for an answer out of form."""

    transport: Transport

    def live(self) -> bool:
        """Whether the server says that it is live."""
        ...

    def ready(self) -> bool:
        """Whether the server says that it is ready."""
        ...

    def server(self) -> Server:
        """The server's metadata."""
        ...

    def model_ready(self, model: str, version: str = "") -> bool:
        """Whether the server says that a model is ready; no version asks for none in particular."""
        ...

    def model(self, model: str, version: str = "") -> Model:
        """A model's metadata."""
        ...

    def infer(self, request: Request, raw: bool = False) -> Response:
        """A model's answer. `raw` sends tensors as bytes and wants bytes back."""
        ...
