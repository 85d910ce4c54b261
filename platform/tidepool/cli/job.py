"""What every script in jobs/ does: read the spec, connect to the cluster, do one step of the pipeline.

Its last line is `result: ` and the step's result as JSON, which `tidepool run --json` and its like print.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from typing import Any

from tidepool.cli.exits import guarded
from tidepool.cli.follow import RESULT


@guarded
def main(step: str) -> None:
    """Do `step` of the pipeline for the spec on the command line."""
    parser = argparse.ArgumentParser(description=f"{step} a model")
    parser.add_argument("spec", nargs="?", default="deployments/digits/spec.yaml", help="the model's spec.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a field of the spec")
    arguments = parser.parse_args()

    import ray

    from tidepool.pipeline import Pipeline
    from tidepool.spec import load_spec
    from tidepool.telemetry.progress import LineProgress

    pipeline = Pipeline(load_spec(arguments.spec, arguments.set), progress=LineProgress())
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    print(f"{RESULT}{json.dumps(as_document(getattr(pipeline, step)()), default=str)}", flush=True)


def as_document(result: Any) -> dict[str, Any]:
    """What a step of the pipeline returns, JSON-ready: metrics as they are, all else with its fields."""
    return result if isinstance(result, dict) else dataclasses.asdict(result)
