"""What server and model say of themselves."""

from __future__ import annotations

from tidepool.conformance.case import Failed, Level, Table, Transport, require
from tidepool.conformance.cases.health import UNKNOWN
from tidepool.conformance.messages import Refused
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import DATATYPES

rule = Table((Transport.REST, Transport.GRPC))


@rule("server.metadata", Level.MUST, "Server Metadata", "the server tells its name, its version and its extensions")
def server(session: Session) -> None:
    told = session.target.server()
    require(told.name != "", "the server has no name")
    require(told.version != "", "the server has no version")


@rule("model.metadata", Level.MUST, "Model Metadata", "a model's name is the one that was asked for")
def name(session: Session) -> None:
    told = session.target.model(session.model)
    require(told.name == session.model, "the metadata is of another model", told.name)


@rule("model.platform", Level.SHOULD, "Model Metadata, Platforms", "a model names its platform, as <project>_<format>")
def platform_name(session: Session) -> None:
    told = session.metadata.platform
    require("_" in told.strip("_"), "the platform isn't <project>_<format>", told)


@rule(
    "model.tensors",
    Level.MUST,
    "Model Metadata",
    "a model tells name, datatype and shape of its inputs and outputs, -1 being an axis of any length",
)
def tensors(session: Session) -> None:
    told = session.target.model(session.model)
    require(bool(told.inputs), "the model has no inputs")
    require(bool(told.outputs), "the model has no outputs")
    for spec in (*told.inputs, *told.outputs):
        require(spec.name != "", "a tensor has no name")
        require(spec.datatype in DATATYPES, f"the datatype of {spec.name} is not the protocol's", spec.datatype)
        require(all(length >= -1 for length in spec.shape), f"the shape of {spec.name} is wrong", list(spec.shape))
    for side in (told.inputs, told.outputs):
        require(len({spec.name for spec in side}) == len(side), "two tensors have one name", side[0].name)


@rule("model.version", Level.MUST, "Model Metadata", "a listed version has metadata of its own, of the same model")
def version(session: Session) -> None:
    for listed in session.versions[:3]:
        told = session.target.model(session.model, listed)
        require(told.name == session.model, f"the metadata of version {listed} is of another model", told.name)
        require(listed in told.versions, f"version {listed} doesn't list itself", told.versions)


@rule("model.unknown", Level.MUST, "Model Metadata", "metadata of a model that the server doesn't have is an error")
def unknown(session: Session) -> None:
    _refused(session, UNKNOWN, "")


@rule("model.unknown-version", Level.MUST, "Model Metadata", "metadata of a version that isn't there is an error")
def unknown_version(session: Session) -> None:
    _ = session.versions
    _refused(session, session.model, UNKNOWN)


def _refused(session: Session, model: str, version: str) -> None:
    try:
        session.target.model(model, version)
    except Refused:
        return
    raise Failed(f"{model} {version} has metadata although it doesn't exist")
