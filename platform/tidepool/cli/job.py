"""What every script in jobs/ does: read the spec, connect to the cluster, do one step of the pipeline."""

from __future__ import annotations

import argparse
import logging

from tidepool.cli.exits import guarded


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
    getattr(pipeline, step)()
