"""What a replica does with a table of versions, without a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tidepool.artifact import open_artifact
from tidepool.errors import CorruptionError
from tidepool.serve.dataplane import Dataplane, LoadedVersion, load_version
from tidepool.serve.host import Host
from tidepool.serve.objective import Objective
from tidepool.serve.replica import Model
from tidepool.serve.splits import Share
from tidepool.serve.versions import Entry, VersionTable
from tidepool.serve.vitals import Vitals
from tidepool.spec import ServeSpec

pytestmark = pytest.mark.usefixtures("home")


class Autoscaled(Model):
    """What Serve asks for its vitals."""

    def __init__(self, dataplane: Dataplane, host: Host) -> None:
        self._dataplane, self._host, self._vitals = dataplane, host, Vitals(0.1)


class Replica:
    """A replica that nobody tells anything."""

    def __init__(self) -> None:
        self.dataplane = Dataplane("digits")
        self.host = Host(self.dataplane, ServeSpec(), self._load)
        self.memory_for = 100

    def _load(self, *what: Any) -> LoadedVersion:
        if not self.memory_for:
            raise MemoryError
        self.memory_for -= 1
        return load_version(*what)

    def told(self, champion: int, canary: int | None = None, **entries: Path) -> list[str]:
        """The versions that it has after hearing of a table."""
        shares = {} if canary is None else {"canary": Share(str(canary), 50.0, 1.0)}
        rows = tuple(Entry(name[1:], str(uri), DIGESTS[uri]) for name, uri in entries.items())
        asyncio.run(self.host.apply(VersionTable(str(champion), rows, shares)))
        return sorted(self.dataplane.lineup.versions)


DIGESTS: dict[Path, str] = {}


@pytest.fixture
def versions(make_artifact: Callable[..., Path]) -> list[Path]:
    folders = [make_artifact(number) for number in (1, 2, 3)]
    DIGESTS.update({folder: open_artifact(str(folder)).digest for folder in folders})
    return folders


def damage(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.onnx").write_bytes(content)


def test_a_replica_tells_what_requests_cost_before_the_first_one_comes(versions: list[Path]) -> None:
    replica, objective = Replica(), Objective(0.1)
    autoscaled = Autoscaled(replica.dataplane, replica.host)
    assert asyncio.run(autoscaled.record_autoscaling_stats()).keys() == {"busy", "late", "arriving"}
    replica.told(1, v1=versions[0])
    vitals = {name: [value] for name, value in asyncio.run(autoscaled.record_autoscaling_stats()).items()}
    objective.learn(vitals, at_most=4)
    assert objective.replicas(vitals, 0.0) == 0


def test_a_damaged_version_that_is_not_the_champion_is_left_out(versions: list[Path]) -> None:
    one, two, _ = versions
    damage(one)
    assert Replica().told(2, v2=two, v1=one) == ["2"]


def test_a_replica_goes_on_with_what_it_has_when_the_new_champion_is_damaged(versions: list[Path]) -> None:
    one, two, three = versions
    damage(three)
    replica = Replica()
    replica.told(2, v2=two, v1=one)
    with pytest.raises(CorruptionError):
        replica.told(3, v3=three, v2=two)
    assert replica.dataplane.choose(None).version == "2"


def test_a_version_that_the_table_names_no_more_is_let_go(versions: list[Path]) -> None:
    one, two, three = versions
    replica = Replica()
    replica.told(2, v2=two, v1=one)
    kept: Any = replica.dataplane.choose("2")
    assert replica.told(3, v3=three, v2=two) == ["2", "3"]
    assert replica.dataplane.choose("2") is kept


def test_a_canary_for_which_there_is_no_memory_is_left_out(versions: list[Path]) -> None:
    one, two, _ = versions
    replica = Replica()
    replica.memory_for = 1
    assert replica.told(1, canary=2, v1=one, v2=two) == ["1"]
    assert replica.dataplane.lineup.traffic is None
    assert [(news.alias, news.failure) for news in replica.host.traffic.news()] == [("canary", "MemoryError")]
    replica.memory_for = 1
    assert replica.told(1, canary=2, v1=one, v2=two) == ["1", "2"]
    assert replica.dataplane.lineup.traffic is not None
    assert [(news.alias, news.failure) for news in replica.host.traffic.news()] == [("canary", "")]
