"""Requests a second and latencies of tidepool and its peers, in turn, in one run: `python benchmarks/serving`."""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import contestants
import load
import mlp


def main() -> None:
    """Measure, and print a Markdown table and, on request, JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="rounds, contestants in turn in each")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()

    results: dict[tuple[str, int], list[load.Result]] = {}
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(contestant()) for contestant in (contestants.fastapi, contestants.tidepool)]
        for server in servers:
            _measure(server, max(options.connections), 2.0)
        for _ in range(options.repeats):
            for connections in options.connections:
                for server in servers:
                    key = (server.name, connections)
                    results.setdefault(key, []).append(_measure(server, connections, options.seconds))
    rows = [_row(name, connections, found) for (name, connections), found in results.items()]
    print(_markdown(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


def _measure(server: contestants.Server, connections: int, seconds: float) -> load.Result:
    request = load.http_request(contestants.PATH, mlp.body(), server.headers)
    return load.closed_loop("127.0.0.1", server.port, request, connections, seconds)


def _row(name: str, connections: int, found: list[load.Result]) -> dict[str, object]:
    return {
        "server": name,
        "connections": connections,
        "requests_per_s": round(statistics.median(r.rate for r in found)),
        "p50_ms": round(statistics.median(r.percentile(0.5) for r in found) * 1e3, 2),
        "p99_ms": round(statistics.median(r.percentile(0.99) for r in found) * 1e3, 2),
        "max_ms": round(max(max(r.latencies) for r in found) * 1e3, 1),
        "thousandth": round(_thousandth(found), 2),
        "errors": sum(r.errors for r in found),
    }


def _thousandth(found: list[load.Result]) -> float:
    """How much slower than their median the slowest run of every 1,000th answer is: near 1 without a periodic stall."""
    latencies = max((r.latencies for r in found), key=len)
    if len(latencies) < 5000:
        return float("nan")
    by_phase = [statistics.median(latencies[phase::1000]) for phase in range(1000)]
    return max(by_phase) / statistics.median(by_phase)


def _markdown(rows: list[dict[str, object]]) -> str:
    heads = list(rows[0])
    lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
    lines += ["| " + " | ".join(str(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
