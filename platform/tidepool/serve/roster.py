"""Which models share the replicas of one application, and how each is served: a JSON file in the home.

`tidepool deploy` and `undeploy` write it; the keeper of versions carries it to the replicas.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tidepool import storage
from tidepool.errors import StorageError
from tidepool.spec import ServeSpec


class Roster:
    """The shared models of one installation."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, dict[str, Any]]:
        """The `serve` section of each model's spec, by its name.

        Raises:
            StorageError: the file is there but can't be read.
        """
        try:
            return dict(json.loads(self._path.read_text()))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            seen, remedy = f"{self._path}: {error}", "remove it, and deploy the shared models again"
            raise StorageError("the list of shared models can't be read", seen=seen, remedy=remedy) from error

    def add(self, name: str, spec: ServeSpec) -> None:
        """Add a model, or change how it is served."""
        with storage.alone(self._path):
            storage.write_json(self._path, {**self.load(), name: spec.model_dump(mode="json")})

    def remove(self, name: str) -> bool:
        """Take a model off; False if it wasn't on it."""
        with storage.alone(self._path):
            models = self.load()
            known = models.pop(name, None) is not None
            if known:
                storage.write_json(self._path, models)
            return known

    def clear(self) -> None:
        """Take all models off."""
        with storage.alone(self._path):
            self._path.unlink(missing_ok=True)
