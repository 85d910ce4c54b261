"""Where things are, how long they are, and what they are called."""

from __future__ import annotations

import ast
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

LONGEST_FILE = 300
LONGEST_FUNCTION = 60
LONGEST_JOB = 60
DRAWERS = {"utils", "common", "helpers", "manager", "base"}
"""Names that say nothing: whatever has no place goes into such a module."""

METADATA = ("platform/tidepool/serve/protocol.py", "platform/tidepool/conformance/messages.py")
"""Where `platform` is the field of the Open Inference Protocol's model metadata."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def test_no_file_is_too_long(root: Path, modules: dict[str, ast.Module]) -> None:
    lengths = {path: len((root / path).read_text().splitlines()) for path in modules}
    wrong = [f"{path}: {length} lines" for path, length in lengths.items() if length > LONGEST_FILE]
    assert not wrong, f"over {LONGEST_FILE} lines, so more than one noun:\n" + "\n".join(wrong)


def test_no_function_is_too_long(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{node.lineno}: {node.name} has {length} lines"
        for path, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, Function) and (length := (node.end_lineno or 0) - node.lineno + 1) > LONGEST_FUNCTION
    ]
    assert not wrong, f"over {LONGEST_FUNCTION} lines: name the steps, and let each be a function\n" + "\n".join(wrong)


def test_jobs_hold_no_logic(root: Path) -> None:
    jobs = list((root / "jobs").glob("*.py"))
    assert jobs
    wrong = [job.name for job in jobs if len(job.read_text().splitlines()) > LONGEST_JOB]
    assert not wrong, f"over {LONGEST_JOB} lines, so it belongs into platform/tidepool: {wrong}"


def test_platform_is_a_source_root_with_one_package(root: Path) -> None:
    assert not (root / "platform" / "__init__.py").exists(), "it would shadow the standard library's platform"
    packages = [folder.parent.name for folder in (root / "platform").glob("*/__init__.py")]
    assert packages == ["tidepool"]
    loose = [file.name for file in (root / "platform").glob("*.py")]
    assert not loose, f"modules belong into platform/tidepool: {loose}"


def test_platform_is_the_standard_librarys(root: Path) -> None:
    script = "import platform; print(platform.__file__)"
    found = subprocess.run([sys.executable, "-c", script], cwd=root, text=True, capture_output=True, check=True)
    assert Path(found.stdout.strip()).parent == Path(sysconfig.get_path("stdlib"))


def test_every_folder_of_the_package_is_a_package(root: Path) -> None:
    folders = {file.parent for file in (root / "platform" / "tidepool").rglob("*.py")}
    missing = [str(folder.relative_to(root)) for folder in folders if not (folder / "__init__.py").exists()]
    assert not missing, f"no __init__.py, so they would not be installed: {missing}"


def test_no_module_is_a_drawer(modules: dict[str, ast.Module]) -> None:
    wrong = [path for path in modules if DRAWERS & set(Path(path).with_suffix("").parts)]
    assert not wrong, f"call a module by what is in it: {wrong}"


def test_only_the_protocols_metadata_is_called_platform(modules: dict[str, ast.Module]) -> None:
    wrong = [
        f"{path}:{line}"
        for path, tree in modules.items()
        for line, name in bound(tree)
        if name == "platform" and path not in METADATA
    ]
    assert not wrong, f"a folder and a standard module bear that name, choose another: {wrong}"


def bound(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """(line, name) of each variable, argument, function and class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, Function | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.alias) and node.asname:
            yield node.lineno, node.asname


def test_make_test_runs_every_test_once(root: Path) -> None:
    commands = subprocess.run(["make", "-n", "test"], cwd=root, text=True, capture_output=True, check=True).stdout
    ran: Counter[Path] = Counter()
    for line in commands.splitlines():
        if "/pytest " in line:
            words = line.split()
            left_out = {root / word.removeprefix("--ignore=") for word in words if word.startswith("--ignore=")}
            ran.update(set(_tests_below([root / word for word in words if word.startswith("tests/")])) - left_out)
    assert ran == Counter(_tests_below([root / "tests"]))


def _tests_below(places: list[Path]) -> list[Path]:
    found = [place.rglob("test_*.py") if place.is_dir() else [place] for place in places]
    return [path for paths in found for path in paths]
