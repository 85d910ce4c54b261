"""Whether server and model say that they are there."""

from __future__ import annotations

from tidepool.conformance.case import Level, Table, Transport, require
from tidepool.conformance.messages import Refused
from tidepool.conformance.session import Session

UNKNOWN = "no-such-thing"
"""Name and version that no server has."""

rule = Table((Transport.REST, Transport.GRPC))


@rule("health.live", Level.MUST, "Server Live", "a server that can take requests says that it is live")
def live(session: Session) -> None:
    require(session.target.live(), "the server says that it isn't live")


@rule("health.ready", Level.MUST, "Server Ready", "a server whose models can answer says that it is ready")
def ready(session: Session) -> None:
    require(session.target.ready(), "the server says that it isn't ready")


@rule("health.model", Level.MUST, "Model Ready", "a model that can answer is ready")
def model(session: Session) -> None:
    require(session.target.model_ready(session.model), "the model isn't ready", session.model)


@rule("health.version", Level.MUST, "Model Ready", "a version that the metadata lists is ready, asked for by itself")
def version(session: Session) -> None:
    for listed in session.versions[:3]:
        require(session.target.model_ready(session.model, listed), "a listed version isn't ready", listed)


@rule("health.unknown-model", Level.MUST, "Model Ready", "a model that the server doesn't have is not ready")
def unknown_model(session: Session) -> None:
    require(not _ready(session, UNKNOWN, ""), "a model that doesn't exist is ready", UNKNOWN)


@rule("health.unknown-version", Level.MUST, "Model Ready", "a version that the server doesn't have is not ready")
def unknown_version(session: Session) -> None:
    _ = session.versions
    require(not _ready(session, session.model, UNKNOWN), "a version that doesn't exist is ready", UNKNOWN)


def _ready(session: Session, model: str, version: str) -> bool:
    try:
        return session.target.model_ready(model, version)
    except Refused:
        return False
