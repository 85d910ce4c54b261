"""`tidepool explain`: what a registered version's answer rests on, offline."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tidepool.cli.output import JSON, as_json

if TYPE_CHECKING:
    from tidepool.artifact import Artifact
    from tidepool.recipe import Signature
    from tidepool.serve.occlusion import Explanation
    from tidepool.serve.protocol import Tensors

METHODS = ("occlusion", "integrated_gradients")
AT_ONCE = 64
"""Rows that the engine answers at a time."""
SHOWN = 5
"""Of a row's values, those that speak loudest for the target and against it."""


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command()(explain)


def explain(
    name: str = typer.Argument(help="The registered model."),
    request: Path | None = typer.Argument(None, help="A request's JSON. Default the first golden row."),
    version: int | None = typer.Option(None, help="This version; default the champion."),
    method: str = typer.Option("occlusion", help="occlusion, or integrated_gradients (torch and captum)."),
    output: str | None = typer.Option(None, help="The output to explain, or the network's prediction."),
    target: int | None = typer.Option(None, help="Which of its values. Default each row's largest."),
    window: int | None = typer.Option(None, help="Side of what occlusion covers at a time. Default one that fits."),
    picture: Path | None = typer.Option(None, help="Write a PNG there."),
    json: bool = JSON,
) -> None:
    """Explain the answer to a request, from the registry and without a cluster."""
    from tidepool.errors import SpecError
    from tidepool.serve.pictures import picture as drawn

    if method not in METHODS:
        raise SpecError("no such method", seen=method, allowed=", ".join(METHODS))
    artifact = _artifact(name, version)
    inputs = _inputs(artifact, request)
    if method == "occlusion":
        wishes = {"output": output, "target": target, "window": window}
        explanation = _occlude(artifact, inputs, {key: value for key, value in wishes.items() if value is not None})
        signature, shown = artifact.signature, inputs
    else:
        signature, shown, explanation = _differentiate(artifact, inputs, output, target)
    if picture is not None:
        picture.write_bytes(drawn(signature, shown, explanation))
    if json:
        found = {each: values.tolist() for each, values in explanation.attributions.items()}
        document = {"method": method, "output": explanation.output, "target": explanation.targets.tolist()}
        as_json({"name": name, "digest": artifact.digest, **document, "attributions": found})
    else:
        print("\n".join(lines(explanation)))


def lines(explanation: Explanation) -> list[str]:
    """For people: of each row and input, the values that speak loudest, with their places."""
    import numpy as np

    told = []
    for row, target in enumerate(explanation.targets):
        told.append(f"row {row}: {explanation.output}[{target}]")
        for name, attributions in explanation.attributions.items():
            values = np.atleast_1d(attributions[row])
            loudest = np.argsort(-np.abs(values), axis=None)[:SHOWN]
            places = [",".join(map(str, np.unravel_index(flat, values.shape))) for flat in loudest]
            told += [f"  {name}[{at}]  {values.flat[flat]:+.4f}" for at, flat in zip(places, loudest, strict=True)]
    return told


def _occlude(artifact: Artifact, inputs: Tensors, parameters: dict[str, object]) -> Explanation:
    from tidepool.artifact import answer
    from tidepool.serve.engine import OnnxEngine
    from tidepool.serve.occlusion import Question, explain

    run = functools.partial(answer, artifact.recipe(), artifact.preprocessing(), OnnxEngine(artifact.onnx))

    async def ask(batch: Tensors, _rows: int) -> Tensors:
        return run(batch)

    question = Question.of(artifact.signature, parameters)
    return asyncio.run(explain(artifact.signature, inputs, question, ask, AT_ONCE))


def _differentiate(
    artifact: Artifact, inputs: Tensors, prediction: str | None, target: int | None
) -> tuple[Signature, Tensors, Explanation]:
    """The explanation of the network's prediction, by its features; with their signature and values."""
    from tidepool.evaluate.attributions import integrated_gradients
    from tidepool.recipe import Signature
    from tidepool.serve.occlusion import Explanation

    found = integrated_gradients(artifact, inputs, prediction, target)
    explanation = Explanation(found.attributions, found.prediction, found.targets)
    return Signature(found.specs, ()), found.values, explanation


def _inputs(artifact: Artifact, request: Path | None) -> Tensors:
    """Checked raw inputs: the request's, or the first golden row.

    Raises:
        InvalidRequest: the request isn't one for this model.
        SpecError: it can't be read.
    """
    from tidepool.errors import InvalidRequest, SpecError
    from tidepool.serve import codecs, protocol

    if request is None:
        return {name: values[:1] for name, values in artifact.golden().inputs.items()}
    try:
        inputs = codecs.decode(request.read_bytes()).inputs
    except OSError as error:
        remedy = "give a file with a request's JSON, or none for a golden row"
        raise SpecError("the request can't be read", seen=f"{request}: {error.strerror}", remedy=remedy) from None
    except InvalidRequest as error:
        raise protocol.plainer(error, artifact.signature) from None
    protocol.check_inputs(artifact.signature, inputs)
    return inputs


def _artifact(name: str, version: int | None) -> Artifact:
    from tidepool.artifact import open_artifact
    from tidepool.registry.client import Registry
    from tidepool.settings import Settings

    settings = Settings()
    found = Registry(settings.registry, settings.storage("artifacts")).version(name, version or "champion")
    return open_artifact(found.uri, settings.root / "cache", found.digest)
