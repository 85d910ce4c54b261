"""Registered models and versions as values, and the references that name them."""

from __future__ import annotations

import json

import pytest

from tidepool.errors import ModelNotFound, RegistryError
from tidepool.registry.entities import (
    ModelVersion,
    Move,
    RegisteredModel,
    check_alias,
    no_such_model,
)


def version(number: int, *aliases: str) -> ModelVersion:
    return ModelVersion(
        name="digits",
        version=number,
        aliases=aliases,
        uri=f"/artifacts/{number}",
        digest=f"{number:064x}",
        bytes=10,
        metrics={"accuracy": 0.9},
        params={"train.epochs": "20"},
        tags={},
        lineage={"data": "d" * 64},
        created_at=1.5,
    )


def model() -> RegisteredModel:
    return RegisteredModel(
        name="digits",
        versions=(version(12), version(2, "champion"), version(1, "previous")),
        aliases={"champion": 2, "previous": 1},
        moves={"champion": (Move(2, 1.5),)},
        tags={},
        created_at=1.5,
    )


@pytest.mark.parametrize(("wanted", "number"), [(1, 1), ("1", 1), (12, 12), ("champion", 2), ("previous", 1)])
def test_a_version_is_found_by_number_or_alias(wanted: int | str, number: int) -> None:
    assert model().version(wanted).version == number


def test_the_champion_is_the_version_that_answers() -> None:
    assert model().version() == model().champion == version(2, "champion")


def test_a_missing_version_names_those_that_exist_in_order() -> None:
    with pytest.raises(ModelNotFound, match=r"no version 3\. Seen: 3\. Allowed: 1, 2, 12\."):
        model().version(3)


def test_a_missing_alias_names_those_that_exist_and_how_to_set_it() -> None:
    with pytest.raises(ModelNotFound, match=r"champion \(version 2\), previous \(version 1\).*promote digits 12"):
        model().version("challenger")


def test_a_model_that_is_not_there_is_met_with_the_closest_name() -> None:
    error = no_such_model("digist", ["digits", "churn"])
    assert error.allowed == "churn, digits"
    assert error.remedy == "did you mean digits?"


@pytest.mark.parametrize("alias", ["1", "v1", "latest", "", "Champion", "a b", "a/b", "a" * 64])
def test_an_alias_that_could_be_misread_is_refused(alias: str) -> None:
    with pytest.raises(RegistryError, match="not a name for an alias"):
        check_alias(alias)


@pytest.mark.parametrize("alias", ["champion", "challenger", "eu-west_2", "v1-beta"])
def test_other_aliases_are_free(alias: str) -> None:
    assert check_alias(alias) == alias


def test_models_and_versions_have_a_json_form() -> None:
    document = json.loads(json.dumps(model().to_json()))
    assert document["aliases"] == {"champion": 2, "previous": 1}
    assert document["versions"][1] == json.loads(json.dumps(version(2, "champion").to_json()))
    assert document["versions"][1]["aliases"] == ["champion"]
    assert document["moves"]["champion"] == [{"version": 2, "at": 1.5, "rollback": False}]
