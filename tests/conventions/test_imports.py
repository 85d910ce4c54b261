"""Who may import whom, and what importing costs."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

LAYERS = (
    {"errors"},
    {"settings", "storage", "document", "spec", "recipe"},
    {"telemetry", "checkpoint", "artifact"},
    {"data", "recipes", "evaluate", "cluster"},
    {"train", "export", "registry"},
    {"serve"},
    {"pipeline", "conformance", "replay", "cli"},
    {"jobs", "deployments"},
)
"""Each may import what is in its own layer and below, but for `STRANGERS`."""

STRANGERS = {
    "train": {"export", "registry", "serve"},
    "export": {"train", "registry", "serve"},
    "registry": {"train", "export", "serve"},
    "serve": {"train"},
}

ONLY = {"pool": {"errors", "settings", "storage", "spec", "telemetry", "cluster"}}
"""What is outside the layers: it imports nothing else, and only the top two layers and `serve` import it."""

WITHOUT_RAY = {"protocol", "codecs", "dataplane", "policy", "entities", "artifact"}
"""Modules, wherever they are, that are tested in milliseconds because nothing in them knows Ray."""


def unit(path: str) -> str:
    """The folder or module that a file belongs to: `train` for `platform/tidepool/train/loop.py`."""
    parts = Path(path).with_suffix("").parts
    return parts[2] if parts[0] == "platform" else parts[0]


def imports(tree: ast.Module, path: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import anywhere in a file, inside functions too; not of those for type checkers."""
    for node in _outside_type_checking(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(Path(path).parent.parts[1:])
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def _outside_type_checking(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            children: list[ast.stmt] = child.orelse
        else:
            children = [child]  # type: ignore[list-item]
        for each in children:
            yield each
            yield from _outside_type_checking(each)


def own_imports(modules: dict[str, ast.Module], *folders: str) -> Iterator[tuple[str, int, str, str]]:
    """(file, line, unit of the file, unit that it imports) of each import of another unit of tidepool."""
    for path, tree in modules.items():
        if not path.startswith(folders) or path == "platform/tidepool/__init__.py":
            continue
        for line, name in imports(tree, path):
            parts = name.split(".")
            imported = parts[1] if parts[0] == "tidepool" else parts[0]
            known = parts[0] == "tidepool" and not imported.startswith("__")
            if (known or imported in ("jobs", "deployments", "tests")) and imported != unit(path):
                yield path, line, unit(path), imported


def allowed(importer: str, imported: str) -> bool:
    """Whether `importer` may import `imported`."""
    if importer in ONLY:
        return imported in ONLY[importer]
    if imported in ONLY:
        return _layer(importer) >= _layer("serve")
    return _layer(importer) >= _layer(imported) and imported not in STRANGERS.get(importer, ())


def _layer(name: str) -> int:
    return next((level for level, layer in enumerate(LAYERS) if name in layer), -1)


def test_every_folder_and_module_has_its_place_in_the_table(root: Path) -> None:
    known = set().union(*LAYERS, ONLY)
    found = {
        entry.stem
        for entry in (root / "platform" / "tidepool").iterdir()
        if (entry.suffix == ".py" or (entry / "__init__.py").exists()) and entry.stem != "__init__"
    }
    assert found <= known, f"say in LAYERS, and in docs/architecture.md, where these stand: {sorted(found - known)}"


def test_imports_go_one_way(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{line}: {importer} may not import {imported}"
        for path, line, importer, imported in own_imports(modules, "platform", "jobs", "deployments")
        if not allowed(importer, imported)
    ]
    assert not wrong, "\n".join(wrong)


def test_no_two_folders_import_each_other(modules: dict[str, ast.Module]) -> None:
    graph: dict[str, set[str]] = defaultdict(set)
    for _, _, importer, imported in own_imports(modules, "platform"):
        graph[importer].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("a circle of imports: " + " <- ".join(error.args[1]))


def test_the_core_names_no_ray(modules: dict[str, ast.Module]) -> None:
    core = {path: tree for path, tree in modules.items() if path.startswith("platform") and _is_core(path)}
    assert {Path(path).stem for path in core} >= WITHOUT_RAY - {"policy"}, "a module without Ray has another name now"
    wrong = [
        f"{path}:{line}: imports {name}"
        for path, tree in core.items()
        for line, name in imports(tree, path)
        if name.split(".")[0] == "ray"
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_core_loads_no_ray(modules: dict[str, ast.Module]) -> None:
    core = [dotted(path) for path in modules if path.startswith("platform") and _is_core(path)]
    assert loaded_by(*core) & {"ray"} == set()


@pytest.mark.parametrize("module", ["tidepool", "tidepool.spec", "tidepool.cli.main"])
def test_what_everybody_imports_loads_neither_torch_nor_ray(module: str) -> None:
    assert loaded_by(module) & {"torch", "ray", "mlflow", "pandas"} == set()


def test_importing_a_recipe_loads_no_torch(modules: dict[str, ast.Module]) -> None:
    recipes = [dotted(path) for path in modules if path.startswith("platform/tidepool/recipes/")]
    assert len(recipes) > 1
    assert loaded_by(*recipes) & {"torch", "ray"} == set()


def dotted(path: str) -> str:
    """`tidepool.serve.codecs` for `platform/tidepool/serve/codecs.py`."""
    return ".".join(Path(path).with_suffix("").parts[1:]).removesuffix(".__init__")


def loaded_by(*names: str) -> set[str]:
    """Top-level packages that are loaded after importing the modules in a fresh interpreter."""
    script = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    finished = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return set(finished.stdout.split())


def _is_core(path: str) -> bool:
    return Path(path).stem in WITHOUT_RAY
