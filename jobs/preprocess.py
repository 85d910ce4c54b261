"""Prepare a spec's data: `ray job submit --working-dir . -- python jobs/preprocess.py SPEC [--set a.b=c]`."""

from tidepool.cli.job import main

if __name__ == "__main__":
    main("preprocess")
