"""Many small models with memory for a few, under Zipf traffic: `python benchmarks/serving/shelf.py`.

Eight connections ask all the while, each time for a model by Zipf's law, and check every answer against what ONNX
Runtime gives. Some of the models are promoted meanwhile, and another one is added.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import threading
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import httpx
import networks
import numpy as np
import orjson
from load import percentile
from servers import Server
from tidepool_server import Cluster, cluster, tidepool
from workloads import WORKLOADS, Row, holds

from tidepool.cluster import local
from tidepool.serve import app
from tidepool.settings import Settings

WORKLOAD = WORKLOADS["a"]
LATE = "late"
"""The model that is added under load."""
Answers = Mapping[str, Mapping[str, Row]]
"""What each version of each model answers."""


def main() -> None:
    """Print what was seen."""
    parser = argparse.ArgumentParser(prog="benchmarks/serving/shelf.py", description=__doc__)
    parser.add_argument("--models", type=int, default=50)
    parser.add_argument("--room", type=float, default=10.0, help="memory, in models")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--exponent", type=float, default=1.0, help="of Zipf's law")
    options = parser.parse_args()
    with cluster() as running:
        names = [f"model-{number:02}" for number in range(options.models)]
        expected = {name: register(running, name, seed, 2) for seed, name in enumerate(names)}
        expected[LATE] = register(running, LATE, len(names), 1)
        size = weigh(running, names[0])
        os.environ["TIDEPOOL_SHARED_MB"] = str(options.room * size / 1e6)
        each_s = deploy(running, names)
        print(f"{len(names)} models of {size / 1e6:.2f} MB, room for {options.room:g}; {each_s:.2f} s a deployment")
        order = Zipf(names, options.exponent)
        crowd = [Client(running, expected, order, seed) for seed in range(options.connections)]
        for client in crowd:
            client.start()
        time.sleep(options.seconds / 3)
        for name in names[:3]:
            tidepool("promote", name, "2")
        began = time.perf_counter()
        tidepool("deploy", LATE)
        added_s = time.perf_counter() - began
        tidepool("undeploy", LATE)
        time.sleep(options.seconds * 2 / 3)
        for client in crowd:
            client.end.set()
        for client in crowd:
            client.join()
        report(running, names, crowd, options.seconds, added_s)


class Zipf:
    """Which model is asked: the k-th with a frequency of 1 / k ** exponent."""

    def __init__(self, names: list[str], exponent: float) -> None:
        weights = 1.0 / np.arange(1, len(names) + 1) ** exponent
        self.names, self._shares = names, weights / weights.sum()

    def draw(self, rng: np.random.Generator, count: int) -> list[str]:
        """The next `count` models."""
        return [self.names[number] for number in rng.choice(len(self.names), count, p=self._shares)]


class Client(threading.Thread):
    """One connection that asks one model after another, until its end."""

    def __init__(self, running: Cluster, expected: Answers, order: Zipf, seed: int) -> None:
        super().__init__()
        self._running, self._expected, self._order = running, expected, order
        self._rng = np.random.default_rng(seed)
        self.end = threading.Event()
        self.latencies: list[float] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Ask."""
        servers = {name: self._running.server(WORKLOAD, name) for name in self._order.names}
        connection = http.client.HTTPConnection(*servers[self._order.names[0]].address, timeout=30)
        while not self.end.is_set():
            for name in self._order.draw(self._rng, 100):
                self._ask(connection, servers[name], name)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, server: Server, name: str) -> None:
        began = time.perf_counter()
        try:
            connection.request("POST", server.path, server.message.body, dict(server.message.headers))
            response = connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
            connection.close()
            return
        self.latencies.append(time.perf_counter() - began)
        answer = orjson.loads(content)
        if response.status != 200:
            self.failures.append(f"{name}: {response.status} {content[:200]!r}")
        elif not holds(answer["outputs"], self._expected[name][answer["model_version"]]):
            self.failures.append(f"{name}: not the answer of version {answer['model_version']}")


def register(running: Cluster, name: str, seed: int, versions: int) -> dict[str, Row]:
    """Register versions of a model, each with weights of its own, and promote the first; returns their answers."""
    answers = {
        str(number + 1): running.register(
            WORKLOAD, name, partial(networks.mlp, seed=2 * seed + number), placement="shared"
        )
        for number in range(versions)
    }
    running.registry.promote(name, 1)
    return answers


def deploy(running: Cluster, names: list[str]) -> float:
    """Put models into service; returns the seconds that each but the first took."""
    settings = Settings()
    with local.connect(settings):
        app.deploy(settings, names[0], running.port)
        began = time.perf_counter()
        for name in names[1:]:
            app.deploy(settings, name, running.port)
        return (time.perf_counter() - began) / max(1, len(names) - 1)


def weigh(running: Cluster, name: str) -> int:
    """The bytes that a model takes when it isn't the first of its process, which brings what all need."""
    for late in (LATE, name):
        deploy(running, [late])
        httpx.post(url(running, late, "infer"), **asked(running, late)).raise_for_status()
    size = int(stats(running, name)["bytes"])
    tidepool("undeploy", LATE)
    return size


def report(running: Cluster, names: list[str], crowd: list[Client], seconds: float, added_s: float) -> None:
    """Print hit rate, latencies, failures, and how much memory was in use."""
    shelves = [stats(running, name) for name in names]
    hits, loads, evictions = (sum(shelf[what] for shelf in shelves) for what in ("hits", "loads", "evictions"))
    latencies = [latency for client in crowd for latency in client.latencies]
    failures = [failure for client in crowd for failure in client.failures]
    p50, p99 = (percentile(latencies, share) * 1e3 for share in (0.5, 0.99))
    load_ms = sum(shelf["load_s"] for shelf in shelves) / loads * 1e3
    print(f"{len(latencies)} answers, {len(failures)} failed or wrong {failures[:3]}")
    found, waits = hits / len(latencies), 1 - (hits + loads) / len(latencies)
    print(f"{found:.1%} found their model in memory, {waits:.1%} waited for another's load")
    print(f"{loads} loads of {load_ms:.1f} ms, {evictions} evictions")
    print(f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, {len(latencies) / seconds:.0f} requests/s")
    print(f"{shelves[0]['all_bytes'] / 1e6:.1f} of {shelves[0]['budget_bytes'] / 1e6:.1f} MB in use")
    print(f"a model added under load after {added_s:.1f} s")


def stats(running: Cluster, name: str) -> dict[str, float]:
    """What the shelf says of a model."""
    response = httpx.get(url(running, name, "stats"), headers=asked(running, name)["headers"])
    return dict(response.json()["shelf"])


def url(running: Cluster, name: str, what: str) -> str:
    """Of a model."""
    return f"http://127.0.0.1:{running.port}/v2/models/{name}/{what}"


def asked(running: Cluster, name: str) -> dict[str, Any]:
    """Body and headers of a request."""
    message = running.server(WORKLOAD, name).message
    return {"content": message.body, "headers": dict(message.headers)}


if __name__ == "__main__":
    main()
