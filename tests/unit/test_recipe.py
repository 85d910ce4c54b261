"""Recipes are found and made, or the message says what is wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tidepool.errors import RecipeError
from tidepool.recipe import Signature, TensorSpec, load_recipe
from tidepool.recipes.digits import Digits, Scaling

DIGITS = "tidepool.recipes.digits:Digits"


def test_a_recipe_gets_its_params() -> None:
    recipe = load_recipe(DIGITS, {"hidden": 7})
    assert isinstance(recipe, Digits)
    assert recipe.hidden == 7


@pytest.mark.parametrize("path", ["tidepool.recipes.nowhere:Digits", "no_such_package.x:Digits"])
def test_a_missing_module_is_named(path: str) -> None:
    with pytest.raises(RecipeError, match=rf"no such recipe module\. Seen: {path}.*PYTHONPATH"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["Digit", "Scaling", ""])
def test_a_missing_class_or_one_that_is_no_recipe_lists_the_recipes_there_are(name: str) -> None:
    with pytest.raises(RecipeError, match=f"Allowed: {DIGITS}"):
        load_recipe(f"tidepool.recipes.digits:{name}")


def test_params_that_the_recipe_does_not_take_are_shown() -> None:
    with pytest.raises(RecipeError, match=r"does not take these params.*hiden"):
        load_recipe(DIGITS, {"hiden": 7})


def test_a_package_that_the_recipe_needs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "needy_recipe.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=r"needy_recipe needs a package that is missing.*a_package_that_is_not_there"):
        load_recipe("needy_recipe:Needy")


@pytest.mark.parametrize("path", ["", ":X", ".a:X", "a..b:X", "recipes/digits.py:Digits"])
def test_what_is_no_path_of_a_recipe_is_refused(path: str) -> None:
    with pytest.raises(RecipeError, match=r"not the path of a recipe.*Allowed: package\.module:Class"):
        load_recipe(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("unended_recipe", "def f(:", "SyntaxError: .*unended_recipe"),
        ("undefined_recipe", "Recipe", "NameError: name 'Recipe'"),
        ("recipe_of_one", "import recipe", "needs a package that is missing. Seen: recipe"),
    ],
)
def test_a_module_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RecipeError, match=message):
        load_recipe(f"{name}:X")


def test_an_unknown_datatype_lists_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"Seen: FLOAT\. Allowed: BOOL, INT8"):
        TensorSpec("x", "FLOAT", (-1,))


def test_a_signature_survives_json() -> None:
    assert Signature.from_json(Digits.signature.to_json(), Digits.signature.pictures) == Digits.signature


def test_fitted_preprocessing_is_remade_from_its_state() -> None:
    scaling = Scaling(16.0)
    again = Digits.preprocessing(**scaling.state())
    image = {"image": np.full((2, 64), 8, np.float32)}
    assert again == scaling
    np.testing.assert_array_equal(again.apply(image)["pixels"], np.full((2, 64), 0.5, np.float32))


def test_importing_any_recipe_imports_no_torch_and_no_ray() -> None:
    program = (
        "import importlib, pkgutil, sys, tidepool.recipes as recipes\n"
        "for module in pkgutil.iter_modules(recipes.__path__):\n"
        "    importlib.import_module(f'tidepool.recipes.{module.name}')\n"
        "    heavy = {'torch', 'ray', 'sklearn', 'pandas'} & sys.modules.keys()\n"
        "    assert not heavy, f'{module.name} imports {heavy}'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
