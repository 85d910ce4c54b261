"""The coordinator: polls, a restart in the middle of a hand-over, and what it sees of the cluster."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from tidepool.pool import ledger
from tidepool.pool.books import GRACE_S
from tidepool.pool.coordinator import Coordinator
from tidepool.pool.policy import PolicySpec
from tidepool.pool.report import Report
from tidepool.pool.sight import Sight, seen

SPEC = PolicySpec(hold_s=5)


class Cluster:
    """Four accelerators on one node, as Ray sees them."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.workers = Counter[str]()

    def clock(self) -> float:
        return self.now

    def look(self, _: str) -> Sight:
        return Sight({"a": 4.0}, {"a": 4.0 - self.workers.total()}, workers=self.workers)


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_a_coordinator_that_restarts_learns_everything_from_those_who_poll(cluster: Cluster, tmp_path: Path) -> None:
    path = str(tmp_path / "ledger.jsonl")

    async def scenario() -> None:
        first = Coordinator(path, SPEC, cluster.look, cluster.clock)
        report = Report("run", "job", "slot", 0, 4, since=cluster.now)
        await first.tell(report)
        cluster.now += GRACE_S
        places = await first.poll(report, {})
        assert places == {"a": 4}
        cluster.workers["job"] = 4
        report = replace(report, number=1, places=places, training=True)
        await first.tell(report)
        await first.want("slot", name="app", wanted=2)
        assert await first.poll(report, places) == {"a": 2}

        second = Coordinator(path, SPEC, cluster.look, cluster.clock)  # the first is killed in the middle
        assert {entry.phase for entry in ledger.read(Path(path))} == {"done", "aborted"}
        await second.tell(report)
        await second.want("slot", name="app", wanted=2)
        cluster.now += GRACE_S
        assert await second.poll(report, places) == {"a": 2}
        (pool,) = await second.view()
        assert pool.run("run").leaving == {"a": 2}

    asyncio.run(scenario())


def test_a_poll_is_answered_as_soon_as_the_target_changes(cluster: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        coordinator = Coordinator(str(tmp_path / "ledger.jsonl"), SPEC, cluster.look, cluster.clock)
        report = Report("run", "job", "slot", 0, 4, since=cluster.now, places={"a": 4}, training=True)
        cluster.workers["job"] = 4
        await coordinator.tell(report)
        cluster.now += GRACE_S
        poll = asyncio.create_task(coordinator.poll(report, {"a": 4}))
        await asyncio.sleep(0)
        await coordinator.want("slot", name="app", wanted=1)
        assert await asyncio.wait_for(poll, 1) == {"a": 3}
        await coordinator.leave("run")
        cluster.workers.clear()
        await coordinator.want("slot", name="app", wanted=1)
        (pool,) = await coordinator.view()
        assert pool.runs == ()

    asyncio.run(scenario())


def test_a_late_report_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    async def scenario() -> None:
        coordinator = Coordinator(str(tmp_path / "ledger.jsonl"), SPEC, cluster.look, cluster.clock)
        late = Report("run", "job", "slot", 0, 4, since=cluster.now, number=1, places={"a": 4})
        await coordinator.tell(replace(late, number=2, places={}))
        await coordinator.tell(late)
        assert await coordinator.poll(late, late.places) == {}
        (pool,) = await coordinator.view()
        assert pool.run("run").workers == {}

    asyncio.run(scenario())


def test_a_sight_tells_replicas_and_workers_from_other_actors() -> None:
    def actor(kind: str, node: str = "n", job: str = "01") -> dict[str, object]:
        return {"ActorClassName": kind, "JobID": job, "Name": "", "Address": {"NodeID": node}}

    alive = [
        actor("ServeReplica:digits:Model"),
        actor("ServeReplica:digits:Model"),
        actor("RayTrainWorker"),
        actor("X"),
    ]
    sight = seen({"n": 4.0}, {"n": 1.0}, alive, [actor("ServeReplica:digits:Model", node=""), actor("RayTrainWorker")])
    assert sight.replicas == {"digits": {"n": 2}}
    assert sight.pending == {"digits": 1}
    assert sight.workers == {"01": 2}


def test_a_sight_knows_the_members_of_each_live_run_by_their_names() -> None:
    def member(name: str) -> dict[str, object]:
        return {"ActorClassName": "Member", "JobID": "01", "Name": name, "Address": {"NodeID": ""}}

    alive = [member("tidepool-member:digits/1:n:a"), member("tidepool-member:digits/1:m:b")]
    sight = seen({"n": 4.0}, {"n": 1.0}, alive, [member("tidepool-member:digits/1:n:c")])
    assert sight.members == {"digits/1": {"n": 1, "m": 1}}
    assert sight.hired == {"digits/1": {"n": 1}}
    assert sight.known("digits/1") == {"n": 2, "m": 1}
    assert sight.known("another") == {}
    assert sight.workers == {}
