"""The training run of a replay: a driver of its own, which prints the samples done until it is ended."""

from __future__ import annotations

import sys

from tidepool.cluster import local
from tidepool.pool.coordinator import sharing
from tidepool.recipe import load_recipe
from tidepool.settings import Settings
from tidepool.spec import spec_of

EPOCHS = 100_000
"""More than any replay lasts."""
BATCH = 64


def main() -> None:
    """Train with the arguments: seconds a sample, [least, most] workers, and the accelerator that each holds."""
    sample_s, workers, accelerator = sys.argv[1:4]
    least, _, most = workers.strip("[]").partition(", ")
    train = {
        "num_workers": [int(least), int(most)],
        "accelerator": accelerator,
        "epochs": EPOCHS,
        "global_batch_size": BATCH,
        "checkpoint_every_s": 10,
    }
    document = {
        "name": "replay",
        "recipe": "tidepool.replay.slow_digits:SlowDigits",
        "params": {"sample_s": float(sample_s)},
        "data": {"source": "builtin:digits"},
        "train": train,
    }
    spec, settings = spec_of(document, "the replay"), Settings()

    def progress(step: str, done: float, total: float, note: str = "") -> None:  # noqa: ARG001
        if step == "train" and done:
            print(int(done) * BATCH, flush=True)

    with local.connect(settings):
        from tidepool.data.preprocess import prepare
        from tidepool.train.trainer import fit

        data = prepare(spec, load_recipe(spec.recipe, spec.params), settings.storage("data"))
        fit(spec, data, settings.storage("runs"), progress, sharing(spec))
