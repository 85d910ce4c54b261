"""Export, register, promote the newest run: `ray job submit --working-dir . -- python jobs/export.py SPEC`."""

from tidepool.cli.job import main

if __name__ == "__main__":
    main("export")
