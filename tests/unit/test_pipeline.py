"""What decides whether a new version becomes champion."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tidepool.artifact import open_artifact
from tidepool.pipeline import same_signature
from tidepool.recipe import Signature
from tidepool.registry.client import Registry


def test_another_models_version_is_told_from_a_better_one(make_artifact: Callable[..., Path], tmp_path: Path) -> None:
    first, second = (open_artifact(str(make_artifact(favourite))) for favourite in (1, 2))
    version = Registry(f"sqlite:///{tmp_path}/registry.db", str(tmp_path / "artifacts")).register(first)
    assert same_signature(version, second)
    signature = second.signature
    renamed = tuple(dataclasses.replace(tensor, name="picture") for tensor in signature.inputs)
    assert not same_signature(version, dataclasses.replace(second, signature=Signature(renamed, signature.outputs)))
