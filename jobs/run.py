"""The whole pipeline of a spec as one job: `ray job submit --working-dir . -- python jobs/run.py SPEC`."""

from tidepool.cli.job import main

if __name__ == "__main__":
    main("run")
