"""Machines on an autoscaling cluster: a loan first, a machine second, and both go back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from pools import Cluster, Crew, wave
from tidepool.errors import SpecError
from tidepool.pool.books import GRACE_S, Books
from tidepool.pool.coordinator import Coordinator, policy_of
from tidepool.pool.ledger import Ledger
from tidepool.pool.machines import Bundle, ordered
from tidepool.pool.policy import MachinesSpec, PolicySpec
from tidepool.pool.state import App
from tidepool.settings import Settings

SPEC = PolicySpec(hold_s=5, machines=MachinesSpec(at_most=2, accelerators=4, buy_after_s=60, return_after_s=300))
MACHINE: Bundle = {"slot": 4}

Entries = Callable[[], list[tuple[str, str]]]


@pytest.fixture
def books(cluster: Cluster, tmp_path: Path) -> Books:
    """Books that may buy two machines of four accelerators."""
    opened = Books("slot", Ledger(tmp_path / "ledger.jsonl", cluster.clock), cluster.look, SPEC, cluster.clock)
    cluster.now += GRACE_S
    return opened


def training(books: Books, cluster: Cluster) -> Crew:
    """A live run on all four accelerators."""
    run = Crew(books, cluster)
    run.go_on()
    run.start()
    return run


def arrive(cluster: Cluster, node: str) -> None:
    cluster.nodes[node] = 4
    cluster.bought.add(node)


def later(books: Books, cluster: Cluster, seconds: float, *, wanted: int, run: Crew) -> None:
    """Time passes in which the application asks for as much as before, and the run goes where it should."""
    for _ in range(int(seconds)):
        cluster.now += 1
        wave(books, cluster, wanted)
        run.go_on()


def test_training_lends_first_a_machine_is_bought_then_and_returns_the_loan(
    books: Books, cluster: Cluster, entries: Entries
) -> None:
    run = training(books, cluster)
    wave(books, cluster, 2)
    run.go_on()
    wave(books, cluster, 2)
    assert (run.target, books.pool.app("app").replicas) == ({"a": 2}, 2)
    assert ordered(books.pool, 4) == [], "the loan comes first"
    later(books, cluster, 61, wanted=2, run=run)
    assert ordered(books.pool, 4) == [MACHINE]
    assert ("buy", "promised") in entries()
    arrive(cluster, "new")
    later(books, cluster, 8, wanted=2, run=run)
    assert ("buy", "done") in entries()
    assert run.target == {"a": 2, "new": 2}, "what it lent is back"
    assert ordered(books.pool, 4) == [MACHINE]


def test_after_the_wave_the_machine_is_cleared_and_goes_back(books: Books, cluster: Cluster, entries: Entries) -> None:
    run = training(books, cluster)
    wave(books, cluster, 2)
    later(books, cluster, 62, wanted=2, run=run)
    arrive(cluster, "new")
    later(books, cluster, 8, wanted=2, run=run)
    later(books, cluster, 302, wanted=0, run=run)
    assert ("return", "promised") in entries()
    assert ordered(books.pool, 4) == []
    assert run.target == {"a": 4}
    del cluster.nodes["new"]
    later(books, cluster, 1, wanted=0, run=run)
    assert ("return", "done") in entries()
    assert [node.name for node in books.pool.nodes] == ["a"]


def test_demand_beyond_the_pool_buys_at_once(books: Books, cluster: Cluster) -> None:
    training(books, cluster)
    wave(books, cluster, 7)
    assert ordered(books.pool, 4) == [MACHINE]


def test_a_bought_machine_is_known_as_such_after_a_restart(books: Books, cluster: Cluster) -> None:
    arrive(cluster, "new")
    books.want(App("app", wanted=2))
    training(books, cluster)
    assert [node.name for node in books.pool.nodes if node.bought] == ["new"]
    assert ordered(books.pool, 4) == [MACHINE]


def test_the_autoscaler_is_told_once_and_told_again_if_it_did_not_hear(cluster: Cluster, tmp_path: Path) -> None:
    heard: list[list[Bundle]] = []

    def ask(bundles: list[Bundle]) -> None:
        heard.append(bundles)
        if len(heard) == 1:
            raise SpecError("it is deaf")

    async def scenario() -> None:
        path = str(tmp_path / "ledger.jsonl")
        coordinator = Coordinator(path, SPEC, cluster.look, cluster.clock, tick_s=60, ask=ask)
        await coordinator.want("slot", name="app", wanted=7)
        assert not heard
        cluster.now += GRACE_S
        for _ in range(3):
            await coordinator.want("slot", name="app", wanted=7)

    asyncio.run(scenario())
    assert heard == [[MACHINE], [MACHINE]]


def test_the_policy_is_read_from_the_settings() -> None:
    assert policy_of(Settings(pool='{"machines": {"at_most": 3}}')).machines.at_most == 3
    assert policy_of(Settings()) == PolicySpec()
    with pytest.raises(SpecError, match=r"machines\.at_most"):
        policy_of(Settings(pool='{"machines": {"at_most": -1}}'))
