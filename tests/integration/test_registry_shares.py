"""Canaries and shadows in the registry, on a real SQLite database."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tidepool.artifact import new_artifact, open_artifact
from tidepool.cli.main import app
from tidepool.errors import CorruptionError, ModelNotFound, RegistryError
from tidepool.recipe import Signature, TensorSpec
from tidepool.registry.client import Registry
from tidepool.registry.entities import Shift
from tidepool.registry.recorder import connect
from tidepool.serve.canary import Rules, Tally
from tidepool.serve.splits import Share
from tidepool.serve.versions import read_table
from tidepool.serve.watching import News, Watches, conclude
from tidepool.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def registry(settings: Settings) -> Registry:
    seconds = (1000.0 + second for second in itertools.count())
    return Registry(settings.registry, settings.storage("artifacts"), clock=seconds.__next__)


@pytest.fixture
def three(registry: Registry, tmp_path: Path) -> str:
    """A model with three versions, the first of which is the champion; its name."""
    name = f"model-{len(registry.models())}"
    tensor = TensorSpec("x", "FP32", (-1, 2))
    for number in range(3):
        uri, signature = str(tmp_path / str(number)), Signature((tensor,), (tensor,))
        with new_artifact(
            uri,
            name=name,
            recipe_path="none:None",
            params={},
            signature=signature,
            preprocessing_state={},
            metrics={},
            lineage={},
        ) as folder:
            (folder / "model.onnx").write_text(f"{name} {number}")
        registry.register(open_artifact(uri))
    registry.promote(name, 1)
    return name


def test_a_canary_is_an_alias_with_a_share(registry: Registry, three: str, settings: Settings) -> None:
    assert registry.shift(three, 2, "canary", 5.5).aliases == ("canary",)
    share = registry.model(three).share("canary")
    assert share is not None
    assert (share.version, share.percent) == (2, 5.5)
    assert connect(settings.registry).get_model_version_by_alias(three, "canary").version == 2
    registry.shift(three, 3, "canary", 10)
    registry.shift(three, 3, "canary", 0)
    model = registry.model(three)
    assert model.share("canary") is None
    assert model.aliases == {"champion": 1}
    assert [(shift.version, shift.percent) for shift in model.shifts["canary"]] == [(2, 5.5), (3, 10), (3, 0)]


def test_the_version_table_carries_canary_and_shadow(registry: Registry, three: str, settings: Settings) -> None:
    registry.shift(three, 2, "canary", 5)
    registry.shift(three, 3, "shadow", 100)
    table = read_table(settings, three)
    assert (table.champion, sorted(entry.version for entry in table.entries)) == ("1", ["1", "2", "3"])
    assert {alias: (share.version, share.percent) for alias, share in table.shares.items()} == {
        "canary": ("2", 5.0),
        "shadow": ("3", 100.0),
    }
    assert all(isinstance(share, Share) and share.since >= 1000 for share in table.shares.values())


def test_who_becomes_champion_is_canary_no_more_and_a_rollback_does_not_bring_that_back(
    registry: Registry, three: str
) -> None:
    registry.shift(three, 2, "canary", 5)
    registry.shift(three, 3, "shadow", 100)
    registry.promote(three, 2)
    assert registry.model(three).aliases == {"champion": 2, "shadow": 3}
    registry.rollback(three)
    assert registry.model(three).aliases == {"champion": 1, "shadow": 3}
    registry.promote(three, 3)
    registry.shift(three, 1, "canary", 5)
    registry.rollback(three)
    assert registry.model(three).aliases == {"champion": 1}


@pytest.mark.parametrize("promote", [True, False])
def test_a_canary_is_concluded_once_with_its_reason(registry: Registry, three: str, promote: bool) -> None:
    registry.shift(three, 2, "canary", 5)
    canary = registry.model(three).share("canary")
    assert canary is not None
    assert registry.conclude(three, canary, promote, "error rate 0/500")
    model = registry.model(three)
    assert model.aliases == {"champion": 2 if promote else 1}
    assert (model.shifts["canary"][-1].percent, model.shifts["canary"][-1].why) == (0, "error rate 0/500")
    assert not registry.conclude(three, canary, promote, "again")


def test_a_verdict_is_carried_out_logged_and_shown(
    registry: Registry,
    three: str,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TIDEPOOL_HOME", str(settings.home))
    assert CliRunner().invoke(app, ["canary", three, "2", "--percent", "5"]).exit_code == 0
    canary = read_table(settings, three).shares["canary"]
    news = News("canary", canary, Tally(answers=100, errors=99), Rules(), decide=True)
    verdict = Watches().see(three, news)
    assert verdict is not None
    assert conclude(settings, three, canary, verdict)
    assert '"seen": 99' in caplog.text
    shown = json.loads(CliRunner().invoke(app, ["traffic", three, "--json"]).stdout)
    assert (shown["champion"], shown["shares"], shown["shifts"][-1]["percent"]) == (1, {}, 0)
    assert "error rate 99/100" in shown["shifts"][-1]["why"]
    assert "rollback" in CliRunner().invoke(app, ["traffic", three]).stdout


def test_a_canary_whose_share_was_changed_meanwhile_is_not_concluded(registry: Registry, three: str) -> None:
    registry.shift(three, 2, "canary", 5)
    canary = registry.model(three).share("canary")
    registry.shift(three, 2, "canary", 50)
    assert canary is not None
    assert not registry.conclude(three, canary, True, "too late")
    assert registry.model(three).aliases == {"champion": 1, "canary": 2}


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        (lambda registry, name: registry.shift(name, 1, "canary", 5), "is the champion"),
        (lambda registry, name: registry.shift(name, 2, "canary", 0), "is no canary"),
        (lambda registry, name: registry.shift(name, 2, "canary", 101), "no such share"),
        (lambda registry, name: registry.shift(name, 2, "champion", 5), "no such share"),
        (lambda registry, name: registry.shift(name, 9, "shadow", 5), "has no version 9"),
    ],
)
def test_shares_that_make_no_sense_are_refused(
    registry: Registry, three: str, attempt: Callable[[Registry, str], None], words: str
) -> None:
    with pytest.raises(RegistryError, match=words):
        attempt(registry, three)
    assert registry.model(three).aliases == {"champion": 1}


def test_a_damaged_version_gets_no_share(registry: Registry, three: str) -> None:
    (Path(registry.version(three, 2).uri) / "model.onnx").write_text("damage")
    with pytest.raises(CorruptionError):
        registry.shift(three, 2, "canary", 5)
    assert registry.model(three).aliases == {"champion": 1}


def test_without_a_champion_nobody_gets_a_share(registry: Registry, three: str, settings: Settings) -> None:
    connect(settings.registry).delete_registered_model_alias(three, "champion")
    with pytest.raises(ModelNotFound, match="no alias champion"):
        registry.shift(three, 2, "canary", 5)


def test_an_alias_set_in_mlflow_has_no_share(registry: Registry, three: str, settings: Settings) -> None:
    registry.shift(three, 2, "canary", 5)
    connect(settings.registry).set_registered_model_alias(three, "canary", "3")
    assert registry.model(three).share("canary") is None
    assert read_table(settings, three).shares == {}


def test_long_reasons_leave_room_for_the_latest_shift(registry: Registry, three: str) -> None:
    for number in range(12):
        registry.shift(three, 2, "canary", number + 1)
        canary = registry.model(three).share("canary")
        assert canary is not None
        registry.conclude(three, canary, False, f"{number} " + 3000 * "x")
    shifts = registry.model(three).shifts["canary"]
    assert 5 < len(shifts) < 24
    assert isinstance(shifts[-1], Shift)
    assert shifts[-1].why.startswith("11 ")
