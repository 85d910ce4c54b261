"""What clients notice of changes: `python benchmarks/serving/changes.py`.

Eight connections ask all the while, and every answer is checked: see `witnesses`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import networks
from servers import Server
from tidepool_server import NAME, Cluster, cluster, tidepool
from witnesses import Witnesses
from workloads import WORKLOADS, Row

CONNECTIONS = 8
PAUSE_S = 0.01
"""Between two requests of one of them: the cores have other things to do as well."""
BEFORE_S, AFTER_S = 1.0, 3.0
PAIR, OTHER = "pair", "other"
WORKLOAD = WORKLOADS["a"]
TITLE = "| change | answers | failed | of a mixture | the old version was last asked, after the command |"


def main() -> None:
    """Print a row for each change."""
    with cluster() as running:
        expected = {
            name: {
                str(seed): running.register(WORKLOAD, name, partial(networks.mlp, seed=seed), **serve) for seed in seeds
            }
            for name, seeds, serve in (
                (NAME, (1, 2), {"num_cpus": 0.2}),
                (PAIR, (1,), {"num_cpus": 0.2, "num_replicas": 2}),
                (OTHER, (1,), {"num_cpus": 0.2}),
            )
        }
        for name in expected:
            running.registry.promote(name, 1)
        for name in (NAME, PAIR):
            tidepool("deploy", name)
            running.server(WORKLOAD, name).await_answer(expected[name]["1"])
        print(f"{TITLE}\n{'| --- ' * 5}|")
        change = partial(under_load, running.server(WORKLOAD), expected[NAME])
        change("promote", partial(tidepool, "promote", NAME, "2"), old="1")
        change("rollback", partial(tidepool, "rollback", NAME), old="2")
        change("a canary", partial(tidepool, "canary", NAME, "2", "--percent", "30"))
        change("its end", partial(tidepool, "canary", NAME, "2", "--percent", "0"), old="2")
        change("another model added", partial(tidepool, "deploy", OTHER))
        change("and deleted", partial(tidepool, "undeploy", OTHER))
        pair = running.server(WORKLOAD, PAIR)
        under_load(pair, expected[PAIR], "`kill -9` of one of two replicas", partial(kill_one, running, PAIR))


def under_load(
    server: Server, expected: dict[str, Row], title: str, command: Callable[[], None], old: str | None = None
) -> None:
    """Run `command` while the witnesses ask, and print what they saw. `old`: the version that should answer no more."""
    with Witnesses(server, expected, CONNECTIONS, PAUSE_S) as witnesses:
        time.sleep(BEFORE_S)
        command()
        done = time.perf_counter()
        time.sleep(AFTER_S)
    late = f"{(witnesses.last_asked(old) - done) * 1e3:.0f} ms" if old else ""
    print(f"| {title} | {witnesses.answers} | {len(witnesses.failures)} | {witnesses.mixed} | {late} |", flush=True)
    for failure in witnesses.failures[:3]:
        print(f"  {failure}", file=sys.stderr)


def kill_one(running: Cluster, name: str) -> None:
    """Kill one replica of a model, and wait until there are as many as before."""
    before = running.replicas(name)
    os.kill(before[0].pid, signal.SIGKILL)
    running.await_replicas(name, lambda seen: len(seen) == len(before) and before[0] not in seen)


if __name__ == "__main__":
    main()
