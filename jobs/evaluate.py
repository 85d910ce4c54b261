"""Evaluate the newest complete run: `ray job submit --working-dir . -- python jobs/evaluate.py SPEC`."""

from tidepool.cli.job import main

if __name__ == "__main__":
    main("evaluate")
