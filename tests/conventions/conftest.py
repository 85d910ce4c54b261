"""What the conventions look at: every Python file of the tree, parsed once."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("platform", "jobs", "deployments", "tests", "benchmarks")


@pytest.fixture(scope="session")
def root() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def modules() -> dict[str, ast.Module]:
    """Path below the root, such as `platform/tidepool/spec.py`, to syntax tree; generated files left out."""
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    return {
        str(file.relative_to(ROOT)): ast.parse(file.read_text(), str(file)) for file in files if "_pb2" not in file.name
    }
