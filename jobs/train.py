"""Train, going on where an interrupted run was: `ray job submit --working-dir . -- python jobs/train.py SPEC`."""

from tidepool.cli.job import main

if __name__ == "__main__":
    main("train")
