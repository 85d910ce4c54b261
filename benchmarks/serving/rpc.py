"""gRPC beside JSON over REST, for the same model in the same run: `python benchmarks/serving/rpc.py`.

The model and the row are those of workload (a). Both loads come from generators of the same kind, so that what is
compared is the server. Ways are measured in turn, round after round; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import grpc
import http2
import load
import numpy as np
import report
import tidepool_server
from load import Address, Result
from tidepool_server import NAME
from workloads import WORKLOADS

from tidepool.cluster import local
from tidepool.serve import protobuf
from tidepool.serve._pb2 import open_inference_pb2 as pb
from tidepool.settings import Settings

WORKLOAD = WORKLOADS["a"]
METHOD = "/inference.GRPCInferenceService/ModelInfer"
REST = "JSON over REST"
Ask = Callable[[int, float], Result]


def main() -> None:
    """Print a table, each way's rate also as a share of JSON over REST's."""
    parser = argparse.ArgumentParser(prog="benchmarks/serving/rpc.py", description=__doc__)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 16], help="of the closed loops")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    options = parser.parse_args()
    found = report.conditions()
    print(f"{found['cores']} cores, load average {found['load_average']}\n", flush=True)
    print(
        "| way | connections | requests/s | of REST's | p50 ms | p99 ms | errors | generator us |\n"
        + "| --- " * 8
        + "|"
    )
    with tidepool_server.serve(WORKLOAD) as server:
        authorization = {"authorization": server.message.headers["authorization"]}
        ways: dict[str, Ask] = {REST: partial(load.closed_loop, server.address, server.request)}
        address = "127.0.0.1", local.running(Settings()).ports["grpc"]
        for form, raw in (("raw", True), ("typed", False)):
            message = request(raw)
            for title, named in (("application named", {"application": NAME}), ("standard client", {})):
                metadata = {**authorization, **named}
                check(address, message, metadata)
                ways[f"gRPC, {form}, {title}"] = partial(http2.closed_loop, address, METHOD, message, metadata)
        for connections in options.connections:
            measure(ways, connections, options)


def measure(ways: dict[str, Ask], connections: int, options: argparse.Namespace) -> None:
    """A row for each way."""
    for ask in ways.values():
        ask(connections, 1.0)
    rounds = [{title: ask(connections, options.seconds) for title, ask in ways.items()} for _ in range(options.repeats)]
    for title in ways:
        results = [each[title] for each in rounds]
        share = statistics.median(each[title].rate / each[REST].rate for each in rounds)
        rate = statistics.median(result.rate for result in results)
        low, high = (statistics.median(result.percentile(part) for result in results) * 1e3 for part in (0.5, 0.99))
        cost, errors = statistics.median(result.cpu_us for result in results), sum(result.errors for result in results)
        row = (title, connections, f"{rate:.0f}", f"{share:.2f}", f"{low:.2f}", f"{high:.2f}", errors, f"{cost:.0f}")
        print("| " + " | ".join(map(str, row)) + " |", flush=True)


def request(raw: bool) -> bytes:
    """The workload's row as a message."""
    inputs, datatypes = {WORKLOAD.input: WORKLOAD.row}, {WORKLOAD.input: WORKLOAD.datatype}
    message = protobuf.encode_request(inputs, datatypes, model=NAME, raw=raw)
    return bytes(message.SerializeToString())


def check(address: Address, message: bytes, metadata: dict[str, str]) -> None:
    """One call by gRPC's own client, and its answer."""
    with grpc.insecure_channel("{}:{}".format(*address)) as channel:
        call = channel.unary_unary(METHOD, response_deserializer=pb.ModelInferResponse.FromString)
        answer = call(message, metadata=tuple(metadata.items()), timeout=60)
    raw = answer.raw_output_contents
    odds = np.frombuffer(raw[1], np.float32) if raw else np.array(answer.outputs[1].contents.fp32_contents)
    assert abs(odds.sum() - 1) < 1e-3, answer


if __name__ == "__main__":
    main()
