"""A cluster and runs that only count, for tests of the coordinator's books."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tidepool.pool.books import Books
from tidepool.pool.policy import PolicySpec
from tidepool.pool.report import Report
from tidepool.pool.sight import Sight
from tidepool.pool.state import LIVE, App

SPEC = PolicySpec(hold_s=5)


class Cluster:
    """What Ray would do: pending replicas are placed where an accelerator is free."""

    def __init__(self, **nodes: int) -> None:
        self.now = 1000.0
        self.nodes = nodes
        self.bought: set[str] = set()
        self.workers: dict[str, Counter[str]] = {}
        self.members: dict[str, Counter[str]] = {}
        self.replicas: dict[str, Counter[str]] = {}
        self.pending: Counter[str] = Counter()
        self.late: Counter[str] = Counter()  # by node, what isn't said to be free though nobody is seen to hold it
        self.starting: Counter[str] = Counter()  # replicas that have an accelerator of node a, but no process yet

    def clock(self) -> float:
        return self.now

    def free(self, node: str) -> int:
        holders = [*self.workers.values(), *self.members.values(), *self.replicas.values()]
        starting = self.starting.total() if node == "a" else 0
        return self.nodes[node] - sum(places[node] for places in holders) - starting

    def look(self, _: str) -> Sight:
        for app, count in self.pending.items():
            for node in self.nodes:
                for _ in range(min(count, self.free(node))):
                    self.replicas.setdefault(app, Counter())[node] += 1
                    self.pending[app] -= 1
                    count -= 1
        assert all(self.free(node) >= 0 for node in self.nodes), "Ray would never do that"
        return Sight(
            total={node: float(total) for node, total in self.nodes.items()},
            free={node: float(self.free(node) - self.late[node]) for node in self.nodes},
            replicas={app: dict(+places) for app, places in self.replicas.items() if +places},
            pending=dict(+(self.pending + self.starting)),
            workers={job: places.total() for job, places in self.workers.items()},
            members={run: dict(+places) for run, places in self.members.items() if +places},
            bought=self.bought,
        )


class Trainee:
    """A run and its supervisor, step by step by hand."""

    def __init__(self, books: Books, cluster: Cluster, name: str = "run", least: int = 0, most: int = 4) -> None:
        self.books, self.cluster = books, cluster
        self.report = Report(name, f"job-{name}", "slot", least, most, since=cluster.now)
        self.say()

    def say(self, **news: object) -> None:
        self.report = replace(self.report, number=self.report.number + bool(news), **news)  # type: ignore[arg-type]
        self.books.report(self.report, self.report.places)
        self.books.settle()

    @property
    def target(self) -> dict[str, int]:
        return dict(self.books.target(self.report.run))

    def start(self) -> None:
        places = self.books.tell(self.report)
        assert places
        self.say(places=places, training=False)
        self.cluster.workers[self.report.job] = Counter(places)
        self.say(training=True, pause_s=3.0)

    def end_segment(self, at_once: bool = True) -> None:
        if at_once:
            self.cluster.workers.pop(self.report.job, None)
        self.say(places={}, training=False)


class Crew(Trainee):
    """A live run."""

    def __init__(self, books: Books, cluster: Cluster, name: str = "run", least: int = 0, most: int = 4) -> None:
        self.books, self.cluster = books, cluster
        job, self.processes = f"job-{name}", cluster.members.setdefault(name, Counter())
        self.report = Report(name, job, "slot", least, most, since=cluster.now, live=True, costs=LIVE)
        self.say()

    def heed(self) -> None:
        """Hear the target; let members go, and hire others, who don't live yet."""
        target = Counter(self.books.tell(self.report))
        for node in self.processes:
            self.processes[node] = min(self.processes[node], target[node])
        if target != Counter(self.report.places):
            self.say(places=dict(target), training=False)

    def start(self) -> None:
        """Those who were hired live, as far as Ray finds room for them, and all train."""
        for node, count in self.report.places.items():
            self.processes[node] += min(count - self.processes[node], self.cluster.free(node))
        if +self.processes == Counter(self.report.places) and self.processes.total():
            self.say(training=True, pause_s=0.05)

    def go_on(self) -> None:
        self.heed()
        self.start()

    def die(self, node: str) -> None:
        """One of its members on a node does."""
        if self.processes[node]:
            self.processes[node] -= 1
            self.say(places=dict(+self.processes), training=False)


def wave(books: Books, cluster: Cluster, replicas: int) -> None:
    """Traffic that needs so many replicas: the coordinator is told, and Serve asks Ray for more, or lets some go."""
    books.want(App("app", wanted=replicas))
    places = cluster.replicas.setdefault("app", Counter())
    cluster.pending["app"] = max(0, replicas - places.total())
    while places.total() > replicas:
        places[max(places, key=lambda node: places[node])] -= 1
    books.settle()
