"""Clients that know nothing of tidepool, against a service of their own: `python tests/foreign`.

schemathesis asks what the OpenAPI document allows and what it doesn't; Triton's clients ask as they ask Triton. Each
has a virtual environment of its own below `--environments`, made when it is first needed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

import service

HERE = Path(__file__).parent
REQUIREMENTS = {
    "schemathesis": ["schemathesis==4.*"],
    "triton": ["tritonclient[grpc,http]==2.*", "aiohttp"],
}
DEFAULT = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tidepool-foreign"


def main() -> int:
    """Start the service and let each of them at it; how many found something."""
    parser = argparse.ArgumentParser(prog="tests/foreign", description=__doc__)
    parser.add_argument("--environments", type=Path, default=DEFAULT, help="folder of their packages")
    parser.add_argument("--seed", type=int, help="of schemathesis")
    options = parser.parse_args()
    programs = {name: environment(name, options.environments) for name in REQUIREMENTS}
    with service.service() as running:
        addresses = [f"127.0.0.1:{running.http_port}", f"127.0.0.1:{running.rpc_port}"]
        triton = [programs["triton"] / "python", HERE / "triton.py", *addresses, running.key, *service.MODELS]
        failed = [bool(subprocess.run(triton).returncode)]
        seed = ["--seed", str(options.seed)] if options.seed is not None else []
        url = f"http://{addresses[0]}/openapi.json"
        config = ["--config-file", HERE / "schemathesis.toml"]
        for model, version in (("digits", "1"), ("digits", "999"), ("letters", "1")):
            variables = {**os.environ, "MODEL": model, "VERSION": version, "KEY": running.key}
            made_up = [programs["schemathesis"] / "schemathesis", *config, "run", url, *seed]
            failed.append(bool(subprocess.run(made_up, env=variables).returncode))
    return sum(failed)


def environment(name: str, root: Path) -> Path:
    """The folder of the programs in an environment, which is made if it isn't there."""
    folder = root / name
    if not (folder / "whole").exists():
        print(f"installing {name} into {folder}", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "--quiet", *REQUIREMENTS[name]], check=True)
        (folder / "whole").touch()
    return folder / "bin"


if __name__ == "__main__":
    sys.exit(main())
