"""Scaling, and more requests than can be answered: `python benchmarks/serving/surges.py`.

A replica counts as answering when HAProxy holds some connections to it open.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import httpx
from load import closed_loop, open_loop, percentile
from servers import Server, rest
from tidepool_server import COMMAND, NAME, Cluster, cluster, tidepool
from witnesses import Witnesses
from workloads import WORKLOADS, Message, Workload

STEP_CONNECTIONS, STEP_S = 16, 60.0
CONNECTIONS, PAUSE_S = 2, 0.5
SLEEPER, STEPPED, LENT = "sleeper", "stepped", "lent"
SLOT, SLOTS = "slot", 4
"""The pool: one for a replica, the others for training until the step."""
SETTLES_S = 15
"""For which training has had the pool before the step."""
SPEC = Path(__file__).parents[2] / "deployments/digits/spec.yaml"
WORKLOAD = WORKLOADS["a"]
DEAR = WORKLOADS["b"]
"""One that a single replica is busy with, not the machine with its clients."""
SLO_S = 0.2


def main() -> None:
    """Print what was seen."""
    parser = argparse.ArgumentParser(prog="benchmarks/serving/surges.py", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of twice the capacity")
    options = parser.parse_args()
    with cluster("--resources", json.dumps({SLOT: SLOTS})) as running:
        scaling(running)
        from_zero(running)
        overload(running, options.seconds)
        from_training(running)


def scaling(running: Cluster) -> None:
    """One replica, a step of load, four, the end of the load, one; checked by witnesses all the while."""
    expected = running.register(DEAR, STEPPED, num_replicas=[1, 4], num_cpus=0.2, slo_p99_ms=SLO_S * 1e3)
    server = deploy(running, STEPPED, DEAR)
    server.await_answer(expected)
    rest()
    with Witnesses(server, {"1": expected}, CONNECTIONS, PAUSE_S) as witnesses:
        with load_on(server):
            began = time.perf_counter()
            for count in (2, 4):
                running.await_replicas(STEPPED, lambda seen, count=count: sum(map(running.is_asked, seen)) >= count)
                print(f"{count} replicas answer {time.perf_counter() - began:.1f} s after the step", flush=True)
        began = time.perf_counter()
        running.await_replicas(STEPPED, lambda seen: len(seen) == 1)
        print(f"1 replica {time.perf_counter() - began:.1f} s after the load")
    print(f"{witnesses.answers} answers checked meanwhile, {len(witnesses.failures)} failed {witnesses.failures[:3]}")
    tidepool("undeploy", STEPPED)


def from_zero(running: Cluster) -> None:
    """The first request to a model without replicas."""
    running.register(WORKLOAD, SLEEPER, num_replicas=[0, 1], num_cpus=0.2)
    server = deploy(running, SLEEPER)
    running.await_replicas(SLEEPER, lambda seen: not seen)
    rest()
    began = time.perf_counter()
    url = f"http://127.0.0.1:{server.port}{server.path}"
    answer = httpx.post(url, content=server.message.body, headers=dict(server.message.headers), timeout=60)
    print(f"from no replica: {answer.status_code} after {time.perf_counter() - began:.1f} s", flush=True)
    tidepool("undeploy", SLEEPER)


def overload(running: Cluster, seconds: float) -> None:
    """Twice the capacity of one replica, by requests that say how long they have."""
    running.register(DEAR, num_replicas=1, num_cpus=1, slo_p99_ms=SLO_S * 1e3)
    server = impatient(deploy(running, NAME, DEAR))
    closed_loop(server.address, server.request, 16, 2)
    capacity = closed_loop(server.address, server.request, 4, 5).rate
    before = server.memory_mb()
    flood = open_loop(server.address, server.request, 2 * capacity, seconds)
    good = sum(latency <= SLO_S for latency in flood.latencies) / flood.seconds
    print(f"capacity {capacity:.0f}/s; at twice that {good:.0f}/s within {SLO_S * 1e3:.0f} ms ({good / capacity:.0%}),")
    refused_ms = percentile(flood.refusals, 0.99) * 1e3
    print(f"{flood.refused} refused (p99 {refused_ms:.0f} ms), {flood.errors} errors,")
    print(f"memory {before:.0f} MB before and {server.memory_mb():.0f} MB after")
    for _ in range(4):
        after = open_loop(server.address, server.request, capacity / 4, 0.5)
        print(f"afterwards, half a second each: p99 {after.percentile(0.99) * 1e3:.1f} ms, {after.refused} refused")


def from_training(running: Cluster) -> None:
    """The step again, where training holds every accelerator that serving doesn't."""
    serve = {"accelerator": SLOT, "num_replicas": [1, SLOTS], "num_cpus": 0.2, "slo_p99_ms": SLO_S * 1e3}
    expected = running.register(DEAR, LENT, **serve)
    server = deploy(running, LENT, DEAR)
    server.await_answer(expected)
    with training(), Witnesses(server, {"1": expected}, CONNECTIONS, PAUSE_S) as witnesses, load_on(server):
        began = time.perf_counter()
        running.await_replicas(LENT, lambda seen: sum(map(running.is_asked, seen)) >= 2)
        print(f"from training: 2 replicas answer {time.perf_counter() - began:.1f} s after the step", flush=True)
    print(f"{witnesses.answers} answers checked meanwhile, {len(witnesses.failures)} failed {witnesses.failures[:3]}")
    print(subprocess.run([*COMMAND, "pool", "ledger"], capture_output=True, text=True).stdout)


@contextmanager
def training() -> Iterator[None]:
    """A run that lasts, and has taken every accelerator that was free."""
    least_to_most = f"train.num_workers=[0, {SLOTS - 1}]"
    settings = (f"train.accelerator={SLOT}", least_to_most, "train.epochs=100000")
    command = [*COMMAND, "train", str(SPEC), *(word for setting in settings for word in ("--set", setting))]
    process = subprocess.Popen(command, cwd=SPEC.parents[2], stdout=subprocess.DEVNULL)
    try:
        while not has_filled():
            time.sleep(1)
        time.sleep(SETTLES_S)
        yield
    finally:
        process.kill()
        process.wait()


def has_filled() -> bool:
    """Whether the run trains on all that it may have."""
    told = subprocess.run([*COMMAND, "pool", "--json"], capture_output=True, text=True, check=True).stdout
    runs = [run for pool in json.loads(told) for run in pool["runs"]]
    return any(sum(run["workers"].values()) == SLOTS - 1 and not run["joining"] for run in runs)


def deploy(running: Cluster, name: str, workload: Workload = WORKLOAD) -> Server:
    """Put the first version of a model into service, if it has no champion yet."""
    versions = running.registry.models()
    champion = next(model for model in versions if model.name == name).aliases.get("champion")
    if champion is None:
        running.registry.promote(name, 1)
    tidepool("deploy", name)
    return running.server(workload, name)


def impatient(server: Server) -> Server:
    """The same requests, which are of no use to anybody after `SLO_S`."""
    document = {**json.loads(server.message.body), "parameters": {"timeout": int(SLO_S * 1e6)}}
    return replace(server, message=Message(json.dumps(document).encode(), server.message.headers))


@contextmanager
def load_on(server: Server) -> Iterator[None]:
    """Many connections that ask without a pause, from a process of their own."""
    arguments = (server.address, server.request, STEP_CONNECTIONS, STEP_S)
    process = multiprocessing.get_context("fork").Process(target=closed_loop, args=arguments)
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


if __name__ == "__main__":
    main()
