"""The registry on a real SQLite database and real files, next to MLflow's own client."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tidepool.artifact import Artifact, new_artifact, open_artifact
from tidepool.errors import ModelNotFound, NothingToRollBack, RegistryError
from tidepool.recipe import Signature, TensorSpec
from tidepool.registry.client import Registry
from tidepool.registry.recorder import connect, flattened

SPEC = {"name": "digits", "train": {"epochs": 20, "num_workers": [1, 4]}, "params": {"hidden": 8}}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with MLflow's tables, which take a second to make: tests copy it."""
    file = tmp_path_factory.mktemp("registry") / "empty.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture
def url(empty_database: Path, tmp_path: Path) -> str:
    return f"sqlite:///{shutil.copy(empty_database, tmp_path / 'registry.db')}"


@pytest.fixture
def registry(url: str, tmp_path: Path) -> Registry:
    return Registry(url, str(tmp_path / "artifacts"), clock=iter(range(1000, 2000)).__next__)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Artifact]:
    """Makes an artifact that holds what the registry looks at, and no real network."""

    def make(name: str = "digits", content: str = "weights", metrics: Mapping[str, float] | None = None) -> Artifact:
        tensor = TensorSpec("x", "FP32", (-1, 2))
        uri = str(tmp_path / f"exported-{name}-{content}")
        lineage: dict[str, Any] = {
            "data_digest": "d" * 64,
            "checkpoint_digest": "c" * 64,
            "spec_digest": "s" * 64,
            "spec": SPEC,
        }
        with new_artifact(
            uri,
            name=name,
            recipe_path="tidepool.recipes.digits:Digits",
            params={"hidden": 8},
            signature=Signature((tensor,), (tensor,)),
            preprocessing_state={"largest": 16.0},
            metrics=metrics or {"accuracy": 0.97},
            lineage=lineage,
        ) as folder:
            for file in ("model.onnx", "weights.safetensors", "golden.npz"):
                (folder / file).write_text(f"{file} of {content}")
        return open_artifact(uri)

    return make


@pytest.fixture
def three(registry: Registry, make: Callable[..., Artifact]) -> Registry:
    """Three versions of digits, without an alias."""
    for content in ("a", "b", "c"):
        registry.register(make(content=content))
    return registry


def test_a_registered_artifact_is_version_1_with_all_that_is_known_of_it(
    registry: Registry, make: Callable[..., Artifact]
) -> None:
    artifact = make()
    version = registry.register(artifact, tags={"team": "vision"})
    assert (version.name, version.version, version.aliases) == ("digits", 1, ())
    assert (version.digest, version.bytes) == (artifact.digest, artifact.bytes)
    assert version.metrics == {"accuracy": 0.97}
    assert version.tags == {"team": "vision"}
    assert version.lineage == {"data_digest": "d" * 64, "checkpoint_digest": "c" * 64, "spec_digest": "s" * 64}
    assert version.params["train.epochs"] == "20"
    assert version.params["train.num_workers"] == "[1, 4]"
    assert version.params["recipe"] == "tidepool.recipes.digits:Digits"
    assert open_artifact(version.uri, expected_digest=version.digest).lineage["spec"] == SPEC


def test_the_same_artifact_again_is_a_new_version_of_bytes_stored_once(
    registry: Registry, make: Callable[..., Artifact], tmp_path: Path
) -> None:
    first, second = registry.register(make()), registry.register(make())
    assert (first.version, second.version) == (1, 2)
    assert first.uri == second.uri
    assert len(list((tmp_path / "artifacts").iterdir())) == 1


def test_mlflow_shows_the_version_its_alias_and_its_run(
    registry: Registry, make: Callable[..., Artifact], url: str
) -> None:
    registry.register(make(metrics={"accuracy": 0.97, "recall@10": 0.5}))
    registry.promote("digits", 1)
    client = connect(url)
    version = client.get_model_version_by_alias("digits", "champion")
    run = client.get_run(version.run_id)
    assert int(version.version) == 1
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits 1"
    assert client.get_experiment(run.info.experiment_id).name == "digits"
    assert run.data.metrics == {"accuracy": 0.97, "recall_10": 0.5}
    assert run.data.params["train.epochs"] == "20"
    assert registry.version("digits").metrics == {"accuracy": 0.97, "recall@10": 0.5}


def test_rollbacks_in_a_row_go_back_one_each(three: Registry) -> None:
    for number in (1, 2, 3):
        assert three.promote("digits", number).aliases == ("champion",)
    assert three.rollback("digits").version == 2
    assert three.rollback("digits").version == 1
    with pytest.raises(NothingToRollBack, match="it names version 1"):
        three.rollback("digits")
    three.promote("digits", 3)
    assert three.rollback("digits").version == 1
    assert three.history("digits") == [1]


def test_promoting_what_is_promoted_already_changes_nothing(three: Registry) -> None:
    for number in (1, 2, 2):
        three.promote("digits", number)
    assert three.history("digits") == [1, 2]


def test_moves_are_kept_with_their_times_for_each_alias(three: Registry) -> None:
    three.promote("digits", 1)
    three.promote("digits", 2)
    three.promote("digits", 3, alias="challenger")
    three.rollback("digits")
    moves = three.models()[0].moves
    assert [(move.version, move.rollback) for move in moves["champion"]] == [(1, False), (2, False), (1, True)]
    assert [move.at for move in moves["champion"]] == sorted(move.at for move in moves["champion"])
    assert three.history("digits", "challenger") == [3]
    assert three.history("digits", "never-set") == []


def test_a_move_made_in_mlflow_is_rolled_back_like_any_other(three: Registry, url: str) -> None:
    three.promote("digits", 1)
    connect(url).set_registered_model_alias("digits", "champion", "3")
    assert three.version("digits").version == 3
    assert three.history("digits") == [1, 3]
    assert three.rollback("digits").version == 1


def test_a_version_deleted_in_mlflow_is_passed_over_by_a_rollback(three: Registry, url: str) -> None:
    for number in (1, 2, 3):
        three.promote("digits", number)
    connect(url).delete_model_version("digits", "2")
    assert three.rollback("digits").version == 1


def test_models_are_listed_with_their_versions_newest_first(three: Registry, make: Callable[..., Artifact]) -> None:
    three.register(make(name="churn"))
    three.promote("digits", 2)
    listed = {model.name: [version.version for version in model.versions] for model in three.models()}
    assert listed == {"churn": [1], "digits": [3, 2, 1]}
    champion = three.models()[1].champion
    assert champion is not None
    assert champion == three.version("digits")


def test_what_does_not_exist_is_met_with_what_does(three: Registry) -> None:
    three.promote("digits", 2)
    with pytest.raises(ModelNotFound, match=r"Allowed: digits\. Remedy: did you mean digits\?"):
        three.version("digist")
    with pytest.raises(ModelNotFound, match=r"Allowed: 1, 2, 3\."):
        three.promote("digits", 4)
    with pytest.raises(ModelNotFound, match=r"Allowed: champion \(version 2\)\."):
        three.rollback("digits", alias="challenger")
    with pytest.raises(ModelNotFound, match="no registered model churn"):
        three.promote("churn", 1)


def test_versions_and_models_that_other_programs_keep_in_mlflow_are_passed_over(three: Registry, url: str) -> None:
    client = connect(url)
    client.create_registered_model("theirs")
    client.create_model_version("digits", "/elsewhere", None)
    assert [model.name for model in three.models()] == ["digits"]
    assert [version.version for version in three.models()[0].versions] == [3, 2, 1]
    with pytest.raises(ModelNotFound):
        three.promote("digits", 4)


def test_reserved_tags_and_misleading_aliases_are_refused(three: Registry, make: Callable[..., Artifact]) -> None:
    with pytest.raises(RegistryError, match=r"tidepool\.digest"):
        three.register(make(), tags={"tidepool.digest": "mine"})
    with pytest.raises(RegistryError, match="neither a number"):
        three.promote("digits", 1, alias="2")
    assert len(three.models()[0].versions) == 3


def test_reading_makes_no_database(tmp_path: Path) -> None:
    registry = Registry(f"sqlite:///{tmp_path}/none/registry.db", str(tmp_path / "artifacts"))
    assert registry.models() == []
    with pytest.raises(ModelNotFound, match="none exist"):
        registry.promote("digits", 1)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_text("hello " * 1000)
    with pytest.raises(RegistryError, match=r"registry\.db can't be used\. Seen: file is not a database"):
        Registry(f"sqlite:///{tmp_path}/registry.db", str(tmp_path)).models()


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    registry = Registry("postgresql+nodriver://me:s3cret@nowhere/x", str(tmp_path))
    with pytest.raises(RegistryError) as caught:
        registry.models()
    assert "s3cret" not in str(caught.value)


@pytest.mark.usefixtures("three")
def test_reading_and_promoting_import_no_mlflow(url: str, tmp_path: Path) -> None:
    script = """
import sys
from tidepool.registry.client import Registry
registry = Registry(sys.argv[1], sys.argv[2])
registry.promote("digits", 1), registry.promote("digits", 2), registry.rollback("digits")
assert registry.models()[0].champion.version == 1
print(sorted({"mlflow", "ray", "torch"} & set(sys.modules)))
"""
    assert run(script, url, str(tmp_path / "artifacts")) == "[]\n"


def test_a_spec_is_flattened_to_text() -> None:
    assert flattened({"a": {"b": {"c": 1.5}}, "d": None, "e": "text", "f": [1, "x"]}) == {
        "a.b.c": "1.5",
        "d": "null",
        "e": "text",
        "f": '[1, "x"]',
    }


def test_the_clock_dates_the_moves(three: Registry) -> None:
    three.promote("digits", 1)
    (move,) = three.models()[0].moves["champion"]
    assert 1000 <= move.at < 2000


def run(script: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], check=True, text=True, stdout=subprocess.PIPE, timeout=60
    ).stdout
