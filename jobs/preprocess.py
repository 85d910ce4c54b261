"""Prepare a spec's data: python jobs/preprocess.py SPEC [--set a.b=c]."""

from __future__ import annotations

import argparse

import ray

from tidepool.cli.exits import guarded
from tidepool.data.preprocess import prepare
from tidepool.recipe import load_recipe
from tidepool.settings import Settings
from tidepool.spec import load_spec
from tidepool.telemetry.progress import LineProgress


@guarded
def main() -> None:
    """Print the URI of the prepared data."""
    parser = argparse.ArgumentParser(description="Read, check, split and preprocess the data of a spec.")
    parser.add_argument("spec", help="path of a spec.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key; may be repeated")
    arguments = parser.parse_args()

    spec = load_spec(arguments.spec, arguments.set)
    recipe = load_recipe(spec.recipe, spec.params)
    ray.init(log_to_driver=False)
    prepared = prepare(spec, recipe, Settings().storage("data"), LineProgress())
    print(prepared.uri)


if __name__ == "__main__":
    main()
