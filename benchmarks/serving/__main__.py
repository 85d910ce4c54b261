"""Speed and memory of tidepool and its peers, in turn, in one run: `python benchmarks/serving`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import environments
import load
import report
from alone import Alone
from contestants import ALL, Contestant, contestants
from environments import Absent
from report import Sample
from servers import Server, rest
from workloads import WORKLOADS, Workload

WARM_UP_S = 2.0


def main() -> None:
    """Measure, print a Markdown table for each workload and, on request, write JSON."""
    options = parse()
    found = report.conditions()
    print(f"`{found['command']}`, {found['cores']} cores, load average {found['load_average']}\n", flush=True)
    found["workloads"] = {}
    for name in options.workload:
        workload = WORKLOADS[name]
        samples, absent = measure_all(workload, contestants(options.peers, options.environments), options)
        table = report.rows(samples)
        print(f"{workload.title}:\n\n{report.markdown(table, absent)}\n", flush=True)
        found["workloads"][name] = {"title": workload.title, "rows": table, "absent": absent}
        if options.json:
            options.json.write_text(json.dumps(found, indent=2))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="benchmarks/serving", description=__doc__)
    folders = [peer.folder for peer in ALL]
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=["a"], help="what is asked, default a")
    parser.add_argument("--peers", nargs="*", choices=folders, help="beside tidepool; default all")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64], help="of the closed loops")
    parser.add_argument("--percent", type=int, nargs="*", default=[50, 80, 110], help="of capacity, in open loops")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, contestants in turn in each")
    parser.add_argument("--environments", type=Path, default=environments.DEFAULT, help="folder of the peers' packages")
    parser.add_argument("--json", type=Path, help="write all figures here")
    return parser.parse_args()


def measure_all(
    workload: Workload, entered: dict[str, Contestant], options: argparse.Namespace
) -> tuple[list[Sample], dict[str, str]]:
    """Every contestant in every round, one at a time on the machine; what was seen, and who is absent and why."""
    alone = Alone(workload) if workload.batch > 1 else None
    samples: list[Sample] = []
    absent: dict[str, str] = {}
    for _ in range(options.repeats):
        for title, contestant in entered.items():
            if title in absent:
                continue
            try:
                with contestant(workload) as server:
                    samples += measure(title, server, options)
            except (Absent, OSError) as error:
                absent[title] = str(error)
        if alone:
            title, how = "the network alone", f"batches of {alone.batch}"
            samples.append(Sample(title, how, alone.measure(options.seconds), 0))
    return samples, absent


def measure(title: str, server: Server, options: argparse.Namespace) -> Iterator[Sample]:
    """Closed loops, then open ones at shares of the capacity that they found."""
    rest()
    load.closed_loop(server.address, server.request, max(options.connections), WARM_UP_S)
    capacity = 0.0
    for connections in options.connections:
        result = load.closed_loop(server.address, server.request, connections, options.seconds)
        capacity = max(capacity, result.rate)
        yield Sample(title, f"{connections} at a time", result, server.memory_mb())
    for percent in options.percent:
        rate = max(capacity * percent / 100, 1 / options.seconds)
        result = load.open_loop(server.address, server.request, rate, options.seconds)
        yield Sample(title, f"{percent} % of capacity", result, server.memory_mb(), rate)


if __name__ == "__main__":
    main()
