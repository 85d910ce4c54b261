"""Fixtures that several unit tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pools import SPEC, Cluster
from tidepool.pool import ledger
from tidepool.pool.books import GRACE_S, Books
from tidepool.pool.ledger import Ledger
from tidepool.serve import shortcut


@pytest.fixture
def cluster() -> Cluster:
    """One node with four accelerators."""
    return Cluster(a=4)


@pytest.fixture
def books(cluster: Cluster, tmp_path: Path) -> Books:
    """Books of that cluster, open for long enough to decide."""
    opened = Books("slot", Ledger(tmp_path / "ledger.jsonl", cluster.clock), cluster.look, SPEC, cluster.clock)
    cluster.now += GRACE_S
    return opened


@pytest.fixture
def entries(tmp_path: Path) -> Callable[[], list[tuple[str, str]]]:
    """The ledger's moves so far: what, and where it is."""
    return lambda: [(entry.kind, entry.phase) for entry in ledger.read(tmp_path / "ledger.jsonl")]


@pytest.fixture
def own_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process publishes as models is the test's own."""
    monkeypatch.setattr(shortcut, "_PUBLISHED", {})
