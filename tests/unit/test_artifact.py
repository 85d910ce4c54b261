"""An artifact comes back as it was written, or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from tidepool import storage
from tidepool.artifact import GOLDEN, ONNX, WEIGHTS, Golden, answer, new_artifact, open_artifact
from tidepool.errors import CorruptionError, StorageError
from tidepool.recipes.digits import Digits, Scaling

GOLDEN_ROWS = Golden(
    {"image": np.arange(128, dtype=np.float32).reshape(2, 64)}, {"digit": np.array([3, 8]), "probabilities": np.eye(2)}
)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """A digits artifact whose model files are not looked into."""
    return Path(write(str(tmp_path / "artifact")))


def write(uri: str, accuracy: float = 0.97) -> str:
    """Write that artifact at a path or URI, which is returned."""
    with new_artifact(
        uri,
        name="digits",
        recipe_path="tidepool.recipes.digits:Digits",
        params={"hidden": 7},
        signature=Digits.signature,
        preprocessing_state=Scaling(16.0).state(),
        metrics={"accuracy": accuracy},
        lineage={"data_digest": "abc", "spec": {"name": "digits"}},
    ) as building:
        (building / ONNX).write_bytes(b"onnx")
        (building / WEIGHTS).write_bytes(b"weights")
        GOLDEN_ROWS.write(building / GOLDEN)
    return uri


def test_an_artifact_comes_back_as_it_was_written(artifact: Path) -> None:
    opened = open_artifact(str(artifact))
    assert (opened.name, opened.params, opened.metrics) == ("digits", {"hidden": 7}, {"accuracy": 0.97})
    assert opened.signature == Digits.signature
    assert opened.preprocessing() == Scaling(16.0)
    assert opened.lineage["data_digest"] == "abc"
    assert opened.onnx.read_bytes() == b"onnx"
    assert opened.weights.read_bytes() == b"weights"
    assert open_artifact(str(artifact), expected_digest=opened.digest) == opened


def test_its_recipe_is_made_with_its_params(artifact: Path) -> None:
    recipe = open_artifact(str(artifact)).recipe()
    assert isinstance(recipe, Digits)
    assert recipe.hidden == 7


def test_golden_rows_come_back_equal(artifact: Path) -> None:
    golden = open_artifact(str(artifact)).golden()
    for written, read in ((GOLDEN_ROWS.inputs, golden.inputs), (GOLDEN_ROWS.outputs, golden.outputs)):
        assert written.keys() == read.keys()
        for name in written:
            np.testing.assert_array_equal(read[name], written[name])
            assert read[name].dtype == written[name].dtype


@pytest.mark.parametrize("shape", [(4,), (2, 2), (4, 1)])
def test_bytes_in_golden_rows_keep_every_byte(tmp_path: Path, shape: tuple[int, ...]) -> None:
    texts = np.array([b"a", b"", "tidepool \u2248".encode(), b"RIFF\x00\x01\x00\x00"], object).reshape(shape)
    Golden({"text": texts}, {"label": texts[::-1]}).write(tmp_path / GOLDEN)
    with np.load(tmp_path / GOLDEN, allow_pickle=False) as arrays:
        golden = Golden.from_arrays(arrays)
    np.testing.assert_array_equal(golden.inputs["text"], texts)
    np.testing.assert_array_equal(golden.outputs["label"], texts[::-1])
    assert all(type(value) is bytes for value in golden.inputs["text"].reshape(-1))


def test_another_digest_than_the_registered_one_is_refused(artifact: Path) -> None:
    with pytest.raises(CorruptionError, match="not the artifact that was registered"):
        open_artifact(str(artifact), expected_digest="0" * 64)


def test_a_sealed_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    from tidepool.storage import new_folder

    with new_folder(str(tmp_path / "x"), {"kind": "checkpoint"}) as building:
        (building / "a").write_text("a")
    with pytest.raises(CorruptionError, match="not the artifact"):
        open_artifact(str(tmp_path / "x"))


def test_a_missing_artifact_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere"):
        open_artifact(str(tmp_path / "nowhere"))


def test_a_bucket_whose_artifact_was_made_anew_is_copied_anew(tmp_path: Path) -> None:
    bucket, cache = f"fsspec+memory:///{uuid.uuid4().hex}", tmp_path / "cache"
    before = open_artifact(write(bucket), cache)
    anew = storage.digest(storage.read_manifest(write(bucket, accuracy=0.25)))
    with pytest.raises(CorruptionError, match="not the artifact that was registered"):
        open_artifact(bucket, cache, anew)
    assert open_artifact(bucket, cache, anew).metrics != before.metrics


def test_copies_that_nobody_opens_any_more_are_deleted(tmp_path: Path) -> None:
    buckets, cache = [f"fsspec+memory:///{uuid.uuid4().hex}" for _ in range(2)], tmp_path / "cache"
    old, used = [open_artifact(write(bucket), cache).folder for bucket in buckets]
    for copy in (old, used):
        os.utime(copy, (0, 0))
    (cache / "somebody's").mkdir()
    os.utime(cache / "somebody's", (0, 0))
    open_artifact(buckets[1], cache)
    assert sorted(path.name for path in cache.iterdir()) == sorted([used.name, "somebody's"])


def test_opening_and_answering_imports_neither_torch_nor_ray(artifact: Path) -> None:
    program = (
        "import sys\n"
        "from tidepool.artifact import open_artifact\n"
        "artifact = open_artifact(sys.argv[1])\n"
        "artifact.recipe(), artifact.preprocessing(), artifact.golden()\n"
        "heavy = {'torch', 'ray', 'onnx', 'onnxruntime', 'pandas'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program, str(artifact)], check=True)


def test_an_answer_is_preprocessing_then_network_then_postprocessing() -> None:
    recipe = Digits()
    image = np.zeros((1, 64), np.float32)
    image[0, 5] = 16

    def one_logit_a_pixel(features: list[np.ndarray]) -> list[np.ndarray]:
        assert features[0].max() == 1.0  # preprocessed
        return [features[0][:, :10]]

    answered = answer(recipe, Scaling(16.0), one_logit_a_pixel, {"image": image})
    assert answered["digit"].tolist() == [5]
    assert answered["probabilities"].sum() == pytest.approx(1)
