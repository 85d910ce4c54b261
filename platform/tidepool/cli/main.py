"""The `tidepool` command: one line a group of verbs, each group a module beside this one.

Nothing heavy is imported until a verb runs, so that `--help` answers at once.
"""

from __future__ import annotations

import typer

from tidepool import __version__
from tidepool.cli import cluster, demo, explain, jobs, keys, models, pool, serving, spec, traffic
from tidepool.cli.exits import fail
from tidepool.errors import TidepoolError

app = typer.Typer(
    name="tidepool",
    help="Train, version and serve models on one elastic pool of machines.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 other failure, 2 wrong command line, spec or recipe, 3 cluster, 4 data, "
    "5 storage, 6 training or job, 7 gate or export, 8 registry, 9 request.",
)

for group in (cluster, demo, jobs, models, traffic, serving, explain, pool, keys, spec):
    group.register(app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"tidepool {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Show the version."),
) -> None:
    """Train, version and serve models on one elastic pool of machines."""


def main() -> None:
    """Run the command line; a TidepoolError becomes one line on stderr and an exit code."""
    try:
        app()
    except TidepoolError as error:
        fail(error)
