"""What a spec.yaml may say, and what is said of one that may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidepool.errors import SpecError
from tidepool.spec import load_spec, spec_of

DIGITS = Path(__file__).parents[2] / "deployments" / "digits" / "spec.yaml"


@pytest.mark.parametrize("field", ["serve.num_replicas", "train.num_workers"])
@pytest.mark.parametrize("bounds", ["0", "[0, 0]", "[2, 1]", "[-1, 1]"])
def test_bounds_that_nothing_can_keep_are_refused(field: str, bounds: str) -> None:
    with pytest.raises(SpecError, match=rf"{field}.*Seen: .*Allowed: needs 0 <= min <= max, and a max of at least 1"):
        load_spec(DIGITS, [f"{field}={bounds}"])


@pytest.mark.parametrize("field", ["serve.num_replicas", "train.num_workers"])
def test_a_model_may_rest_with_no_replica_and_no_worker(field: str) -> None:
    section, name = field.split(".")
    assert getattr(getattr(load_spec(DIGITS, [f"{field}=[0, 2]"]), section), name) == (0, 2)


@pytest.mark.parametrize("name", ["gateway", "_shared"])
def test_no_model_takes_the_place_of_tidepools_own_applications(name: str) -> None:
    with pytest.raises(SpecError, match="and not `gateway`"):
        spec_of({"name": name, "recipe": "a:A", "data": {"source": "builtin:a"}}, "here")


def test_a_path_through_a_file_is_no_spec() -> None:
    with pytest.raises(SpecError, match="no such spec file"):
        load_spec(DIGITS / "spec.yaml")


def test_a_spec_that_can_not_be_read_says_why(tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").symlink_to("spec.yaml")  # as good as one without permission, for root too
    with pytest.raises(SpecError, match=r"spec\.yaml can't be read"):
        load_spec(tmp_path / "spec.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=true",
        'train.epochs="5"',
        "train.epochs=5.0",
        "train.num_workers=[true, 2]",
        "train.learning_rate=.inf",
        "train.learning_rate=.nan",
        'train.learning_rate="0.1"',
        "serve.cache_mb=true",
        "serve.prewarm=1",
        'serve.prewarm="yes"',
        'evaluate.gate={accuracy: {compare: ">=", bound: .nan}}',
        'evaluate.gate={accuracy: ">= 1e999"}',
        'evaluate.gate={accuracy: ">= 1.2.3"}',
        'name="digits\\n"',
        "name=5",
    ],
)
def test_a_value_of_another_type_is_refused_where_it_stands(override: str) -> None:
    with pytest.raises(SpecError, match="is not valid") as caught:
        load_spec(DIGITS, [override])
    assert override.partition("=")[0] in str(caught.value)
    assert f" in --set {override} is not valid" in str(caught.value)


def test_of_several_overrides_the_one_that_counts_is_blamed() -> None:
    with pytest.raises(SpecError, match=r" in --set name=8 is not valid"):
        load_spec(DIGITS, ["name=7", "train.epochs=2", "name=8"])


def test_a_section_that_does_not_fit_together_is_shown_with_what_was_set_in_it() -> None:
    with pytest.raises(SpecError, match=r"^serve in .*spec.yaml with --set serve.placement=shared is not valid"):
        load_spec(DIGITS, ["train.epochs=2", "serve.placement=shared"])
    with pytest.raises(SpecError, match=r"^serve in --set serve={.*} with --set serve.placement=shared is not valid"):
        load_spec(DIGITS, ["serve.placement=dedicated", "serve={num_replicas: [0, 4]}", "serve.placement=shared"])


@pytest.mark.parametrize(("text", "number"), [("1e-3", 0.001), ("2E+1", 20.0), ("1.5e2", 150.0), ("1", 1.0)])
def test_numbers_may_be_written_as_in_json(text: str, number: float) -> None:
    assert load_spec(DIGITS, [f"train.learning_rate={text}"]).train.learning_rate == number


def test_a_spec_survives_json() -> None:
    spec = load_spec(DIGITS)
    assert spec_of(spec.model_dump(mode="json"), "its own JSON") == spec
