"""`python -m tidepool.conformance URL`: check a server, print what it keeps, and exit 1 if it breaks a MUST."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tidepool.conformance import report, tensors
from tidepool.conformance.case import Failed, Level
from tidepool.conformance.cases import CASES
from tidepool.conformance.messages import Refused
from tidepool.conformance.rest import RestTarget, accepted
from tidepool.conformance.rpc import GrpcTarget
from tidepool.conformance.runner import broken, run
from tidepool.conformance.session import Session
from tidepool.conformance.tensors import Tensor

OK, BROKEN, UNUSABLE = 0, 1, 2
"""Exit codes: all rules that count are kept; some are not; nothing could be checked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.list:
        print(report.catalogue(CASES))
        return OK
    try:
        sessions = _sessions(options)
    except (Failed, Refused, ValueError, OSError, KeyError) as error:
        print(f"conformance: {error}", file=sys.stderr)
        return UNUSABLE
    outcomes = run(sessions, CASES, options.case)
    print(report.to_json(outcomes) if options.json else report.table(outcomes))
    if options.junit:
        options.junit.write_text(report.to_junit(outcomes))
    levels = list(Level) if options.strict else [Level.MUST]
    return BROKEN if broken(outcomes, levels) else OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tidepool.conformance",
        description="Check a server of the Open Inference Protocol v2 against the rules of the protocol.",
        epilog="Exit code 0: no MUST is broken (--strict: no rule at all); 1: one is; 2: nothing could be checked.",
    )
    parser.add_argument("url", nargs="?", metavar="URL", help="the server over HTTP, e.g. http://localhost:8000")
    parser.add_argument("--grpc", metavar="HOST:PORT", help="the server over gRPC; grpcs://HOST:PORT for TLS")
    parser.add_argument("--model", metavar="NAME", help="the model to ask; default the only one of the index")
    parser.add_argument(
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="goes with every request, as metadata over gRPC; may be repeated",
    )
    parser.add_argument("--input", type=Path, metavar="FILE", help="an inference request in JSON to use as the input")
    parser.add_argument("--case", default="*", metavar="PATTERN", help="only the cases whose id fits, e.g. 'infer.*'")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="SECONDS", help="for each request; default 30")
    parser.add_argument("--strict", action="store_true", help="a broken SHOULD or EXTENSION fails the run as well")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write JUnit XML as well")
    parser.add_argument("--list", action="store_true", help="print all rules as Markdown and stop")
    return parser


def _sessions(options: argparse.Namespace) -> list[Session]:
    """A session for each transport that was asked for."""
    if not options.url and not options.grpc:
        raise ValueError("give a URL, --grpc HOST:PORT, or both")
    headers = dict(_header(text) for text in options.header)
    sample = _sample(json.loads(options.input.read_bytes())) if options.input else ()
    rest = RestTarget(options.url, headers, options.timeout) if options.url else None
    model = options.model or (_only_model(rest) if rest else None)
    if model is None:
        raise ValueError("give --model NAME")
    targets = [rest] if rest else []
    sessions = [Session(target, model, sample) for target in targets]
    if options.grpc:
        sessions.append(Session(GrpcTarget(options.grpc, headers, options.timeout), model, sample))
    if len(sessions) == 2:
        sessions[1].other = sessions[0]
    return sessions


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError(f"a header is 'NAME: VALUE', not {text!r}")
    return name.strip(), value.strip()


def _only_model(rest: RestTarget) -> str:
    """The one model that the repository index lists.

    Raises:
        ValueError: there is no index, or it lists none or several.
    """
    try:
        models = accepted(rest.send("POST", "/v2/repository/index", json={})).json()
        names = list(dict.fromkeys(model["name"] for model in models))  # a version may have an entry of its own
    except (Refused, ValueError, TypeError, KeyError):
        names = []
    if len(names) != 1:
        raise ValueError(f"give --model NAME; the server lists {', '.join(names) or 'none'}")
    return str(names[0])


def _sample(document: dict[str, Any]) -> tuple[Tensor, ...]:
    """The tensors of an inference request in JSON."""
    made = []
    for head in document["inputs"]:
        values = tensors.flat(head["data"])
        if head["datatype"] == "BYTES":
            values = [value.encode() for value in values]
        made.append(Tensor(head["name"], head["datatype"], tuple(head["shape"]), values))
    return tuple(made)


if __name__ == "__main__":
    sys.exit(main())
