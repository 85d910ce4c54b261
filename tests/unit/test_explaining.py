"""What an answer rests on: occlusion through a served model, its tensors, its picture, and what it costs others."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from safetensors.torch import save

from tidepool.artifact import open_artifact
from tidepool.errors import InvalidRequest
from tidepool.recipe import Signature, TensorSpec
from tidepool.recipes.digits import Digits
from tidepool.serve import pictures
from tidepool.serve.auth import Key, Keyring, digest
from tidepool.serve.dataplane import Dataplane, Lineup, load_version
from tidepool.serve.gradients import Gradients
from tidepool.serve.occlusion import MOST_ROWS, Explanation, Question, explain
from tidepool.serve.protocol import Tensors
from tidepool.serve.rest import ModelApp

PREFIX = "/v2/models/digits"
WEIGHTS = np.arange(-8, 8, dtype=np.float32).reshape(4, 4)
GRID = Signature((TensorSpec("x", "FP32", (-1, 4, 4)),), (TensorSpec("y", "FP32", (-1, 2)),))


def linear(at_once: list[int] | None = None) -> Any:
    """Scores: the weighted sum of x, and its negative."""

    async def ask(inputs: Tensors, rows: int) -> Tensors:
        if at_once is not None:
            at_once.append(rows)
        score = (inputs["x"] * WEIGHTS).sum(axis=(1, 2))
        return {"y": np.stack([score, -score], axis=1)}

    return ask


def explained(signature: Signature, inputs: Tensors, ask: Any, at_once: int = 8, **parameters: Any) -> Explanation:
    return asyncio.run(explain(signature, inputs, Question.of(signature, parameters), ask, at_once))


def test_of_a_linear_model_the_attributions_are_its_terms() -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    found = explained(GRID, {"x": x}, linear(), target=0, window=1)
    np.testing.assert_allclose(found.attributions["x"], x * WEIGHTS, atol=1e-5)
    against = explained(GRID, {"x": x}, linear(), target=1, window=1, baseline=0.5)
    np.testing.assert_allclose(against.attributions["x"], -(x - 0.5) * WEIGHTS, atol=1e-5)


def test_a_window_covers_its_values_together_and_the_last_may_be_smaller() -> None:
    x = np.ones((1, 4, 4), np.float32)
    found = explained(GRID, {"x": x}, linear(), target=0, window=[3, 4]).attributions["x"][0]
    assert (found[:3] == WEIGHTS[:3].sum()).all()
    assert (found[3:] == WEIGHTS[3:].sum()).all()


def test_the_target_is_the_rows_largest_score_unless_one_is_asked_for() -> None:
    x = np.stack([np.ones((4, 4)), -np.ones((4, 4))]).astype(np.float32)
    assert explained(GRID, {"x": x}, linear()).targets.tolist() == [1, 0]
    assert explained(GRID, {"x": x}, linear(), target=1).targets.tolist() == [1, 1]


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 5))
def test_no_more_rows_go_at_once_than_may_and_batches_change_nothing(rows: int, at_once: int, window: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 4, 4)).astype(np.float32)
    seen: list[int] = []
    found = explained(GRID, {"x": x}, linear(seen), at_once, window=window, target=0)
    alone = explained(GRID, {"x": x}, linear(), 1, window=window, target=0)
    np.testing.assert_allclose(found.attributions["x"], alone.attributions["x"], atol=1e-4)
    assert max(seen) <= max(at_once, rows)


def test_inputs_of_single_values_whole_numbers_and_text_go_together() -> None:
    signature = Signature(
        (
            TensorSpec("length", "FP32", (-1,)),
            TensorSpec("count", "UINT8", (-1, 2)),
            TensorSpec("name", "BYTES", (-1,)),
        ),
        (TensorSpec("label", "INT64", (-1,)), TensorSpec("sum", "FP64", (-1,))),
    )

    async def ask(inputs: Tensors, rows: int) -> Tensors:
        return {"sum": inputs["length"] * 2.0 + inputs["count"].sum(axis=1) + [len(name) for name in inputs["name"]]}

    names = np.array([b"a", b"bcd"], dtype=np.object_)
    inputs = {"length": np.array([3, 4], np.float32), "count": np.array([[1, 2], [3, 4]], np.uint8), "name": names}
    found = explained(signature, inputs, ask)
    assert found.output == "sum"
    assert {name: values.tolist() for name, values in found.attributions.items()} == {
        "length": [6, 8],
        "count": [[1, 2], [3, 4]],
    }
    with pytest.raises(InvalidRequest, match="not UINT8"):
        explained(signature, inputs, ask, baseline=-1)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"output": "z"}, "no such output.*Allowed: y"),
        ({"target": 2}, "no such target.*0 to 1"),
        ({"target": -1}, "not an index"),
        ({"target": True}, "not an index"),
        ({"window": 0}, "not a size"),
        ({"window": [1, 2, 3]}, "wrong number of axes"),
        ({"window": "big"}, "not a size"),
        ({"baseline": "grey"}, "not a number"),
        ({"baseline": float("inf")}, "not a number"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        explained(GRID, {"x": np.ones((1, 4, 4), np.float32)}, linear(), **parameters)


def test_too_much_at_once_is_refused_before_anything_is_run() -> None:
    seen: list[int] = []
    with pytest.raises(InvalidRequest, match="larger window"):
        explained(GRID, {"x": np.ones((MOST_ROWS, 4, 4), np.float32)}, linear(seen))
    assert not seen


def app_of(artifact: Path, gradients: Gradients | None = None) -> ModelApp:
    plane = Dataplane("digits")
    plane.flip(Lineup("1", {"1": load_version("1", open_artifact(str(artifact)))}))
    keys = [Key(name, name, digest(name), ("*",), 0.0, None, (name,)) for name in ("explain", "infer")]
    return ModelApp(plane, Keyring(keys), max_body_bytes=100_000, gradients=gradients)


@pytest.fixture
def app(make_artifact: Callable[..., Path]) -> ModelApp:
    return app_of(make_artifact(1))


@pytest.fixture(scope="module")
def gradients() -> Iterator[Gradients]:
    asked = Gradients()
    yield asked
    asked.end()


@pytest.fixture
def differentiable(make_artifact: Callable[..., Path], gradients: Gradients) -> ModelApp:
    return app_of(make_artifact(weights=save(Digits().network().state_dict())), gradients)


def asked(app: ModelApp, body: Any, path: str = "/explain", key: str = "explain", **headers: str) -> httpx.Response:
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": PREFIX}, receive, send)

    async def once() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(mounted), base_url="http://t") as client:
            sent = {"x-api-key": key, **headers}
            return await client.post(PREFIX + path, headers=sent, content=orjson.dumps(body))

    return asyncio.run(once())


def request(rows: int = 1, **parameters: Any) -> dict[str, Any]:
    image = np.random.default_rng(2).integers(0, 16, (rows, 64)).astype(float)
    tensor = {"name": "image", "shape": [rows, 64], "datatype": "FP32", "data": image.reshape(-1).tolist()}
    return {"id": "a", "parameters": parameters, "inputs": [tensor]}


@pytest.mark.parametrize("path", ["/explain", "/versions/1/explain"])
def test_a_model_explains_in_the_protocols_form(app: ModelApp, path: str) -> None:
    answer = asked(app, request(2), path).json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "a")
    assert (answer["parameters"]["method"], answer["parameters"]["output"]) == ("occlusion", "probabilities")
    target, image = answer["outputs"]
    assert (target["name"], target["datatype"], target["data"]) == ("target", "INT64", [1, 1])
    assert (image["name"], image["datatype"], image["shape"]) == ("image", "FP32", [2, 64])
    assert np.ptp(image["data"]) > 0


def test_integrated_gradients_are_of_the_networks_features(differentiable: ModelApp) -> None:
    answer = asked(differentiable, request(2, method="integrated_gradients", target=4)).json()
    assert (answer["parameters"]["method"], answer["parameters"]["output"]) == ("integrated_gradients", "logits")
    target, pixels = answer["outputs"]
    assert (target["name"], target["data"]) == ("target", [4, 4])
    assert (pixels["name"], pixels["datatype"], pixels["shape"]) == ("pixels", "FP32", [2, 64])
    assert np.ptp(pixels["data"]) > 0
    drawn = asked(differentiable, request(2, method="integrated_gradients"), accept="image/png")
    assert Image.open(io.BytesIO(drawn.content)).size == (256 + 8 + 256, 256)


@pytest.mark.parametrize(
    ("parameters", "status", "words"),
    [
        ({"method": "guess"}, 400, "no such method. Seen: guess. Allowed: occlusion, integrated_gradients."),
        ({"method": ["occlusion"]}, 400, "no such method"),
        ({"method": "integrated_gradients", "window": 2}, 400, "unknown parameter. Seen: window."),
        ({"method": "integrated_gradients", "output": 3}, 400, "parameter output is not a name"),
        ({"method": "integrated_gradients", "output": "digit"}, 400, "Allowed: logits"),
        ({"method": "integrated_gradients", "target": "3"}, 400, "parameter target is not an index"),
        ({"method": "integrated_gradients", "target": 10}, 400, "Allowed: 0 to 9"),
        ({"method": "integrated_gradients", "timeout": 1}, 429, "the deadline passed"),
    ],
)
def test_gradients_that_make_no_sense_are_refused(
    differentiable: ModelApp, parameters: dict[str, Any], status: int, words: str
) -> None:
    refused = asked(differentiable, request(1, **parameters))
    assert (refused.status_code, words in refused.json()["error"]) == (status, True), refused.text


def test_too_many_rows_for_gradients_are_refused(differentiable: ModelApp) -> None:
    refused = asked(differentiable, request(129, method="integrated_gradients"))
    assert (refused.status_code, "Allowed: 128" in refused.json()["error"]) == (400, True)


def test_outputs_can_be_chosen_and_come_raw(app: ModelApp) -> None:
    body = {**request(binary_data_output=True), "outputs": [{"name": "image"}]}
    answer = asked(app, body)
    length = int(answer.headers["inference-header-content-length"])
    assert len(answer.content) - length == 64 * 4


def test_a_picture_is_a_png_that_shows_every_row(app: ModelApp) -> None:
    answer = asked(app, request(2), accept="image/png")
    assert answer.headers["content-type"] == "image/png"
    shown = Image.open(io.BytesIO(answer.content))
    assert (shown.format, shown.size) == ("PNG", (256 + 8 + 256, 256))
    assert "too many rows" in asked(app, request(17), accept="image/png").json()["error"]


def test_explaining_needs_its_own_verb_and_parameters(app: ModelApp) -> None:
    assert asked(app, request(), key="infer").status_code == 403
    assert asked(app, request(), "/infer", "explain").status_code == 403
    refused = asked(app, request(windows=2))
    assert (refused.status_code, "window" in refused.json()["error"]) == (400, True)
    assert asked(app, {"inputs": []}).status_code == 400
    assert asked(app, request(), "/versions/9/explain").status_code == 404


@given(
    arrays.arrays(
        np.float32, arrays.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-1, 1, width=32)
    )
)
def test_any_picture_is_drawn_as_it_is(weight: np.ndarray[Any, np.dtype[np.float32]]) -> None:
    drawn = pictures.drawing(np.zeros_like(weight), weight)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(pictures.png(drawn)))), drawn)
    most = np.unravel_index(np.abs(weight).argmax(), weight.shape)
    times = len(drawn) // len(weight)
    red, _, blue = drawn[most[0] * times, most[1] * times].astype(int)
    assert (red > blue) == (weight[most] > 0) or weight[most] == 0


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3), (3, 6, 5), (1, 6, 5)])
def test_pictures_may_have_channels_last_or_first(shape: tuple[int, ...]) -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, *shape)),), (TensorSpec("y", "FP32", (-1, 1)),))
    values = np.random.default_rng(0).normal(size=(1, *shape)).astype(np.float32)
    drawn = pictures.picture(signature, {"x": values}, Explanation({"x": values}, "y", np.zeros(1, np.int64)))
    assert Image.open(io.BytesIO(drawn)).size == (5 * 43, 6 * 43)


def test_a_model_without_pictures_gives_none() -> None:
    signature = Signature((TensorSpec("x", "FP32", (-1, 6)),), (TensorSpec("y", "FP32", (-1, 1)),))
    values = np.ones((1, 6), np.float32)
    with pytest.raises(InvalidRequest, match="no input is a picture"):
        pictures.picture(signature, {"x": values}, Explanation({"x": values}, "y", np.zeros(1, np.int64)))
