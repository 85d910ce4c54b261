"""The pool at scale, simulated under four regimes: `python benchmarks/pool` prints a table for each size."""

from __future__ import annotations

import argparse
from pathlib import Path

from tidepool.pool.simulate import Scenario, simulate
from tidepool.pool.tide import draw

FINE_TICKS_UP_TO = 256
"""Accelerators: larger pools are simulated in ticks of 30 s in place of 10 s, and share half as often."""


def main() -> None:
    """Simulate, print Markdown tables and, on request, draw the tide."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--accelerators", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--days", type=float, default=3.0)
    parser.add_argument("--load", type=float, default=0.9, help="training's work against what a split leaves it")
    parser.add_argument("--elastic-from", type=int, default=1, help="jobs of so many accelerators or more are elastic")
    parser.add_argument("--jobs", type=Path, help="training jobs as in Philly's trace; generated if not given")
    parser.add_argument("--requests", type=Path, help="requests as in Azure's trace; generated if not given")
    parser.add_argument("--draw", type=Path, help="folder for a picture of each size and regime")
    parser.add_argument("--format", choices=["html", "svg", "png"], default="html")
    options = parser.parse_args()
    for size in options.accelerators:
        fine = size <= FINE_TICKS_UP_TO
        scenario = Scenario(
            accelerators=size,
            days=options.days,
            load=options.load,
            elastic_from=options.elastic_from,
            jobs=options.jobs,
            requests=options.requests,
            tick_s=10.0 if fine else 30.0,
            share_every_s=10.0 if fine else 60.0,
        )
        table = simulate(scenario)
        seconds = ", ".join(f"{outcome.took_s:.0f}" for outcome in table.outcomes)
        jobs = table.outcomes[0].jobs
        print(f"\n{size:,} accelerators, {options.days:g} days, {jobs:,} jobs; simulated in {seconds} s\n")
        print(table.to_markdown(), flush=True)
        for outcome in table.outcomes if options.draw else ():
            name = outcome.regime.replace(",", "").replace(" ", "-")
            draw(outcome.drawn(size), options.draw / f"{size}-{name}.{options.format}")


if __name__ == "__main__":
    main()
