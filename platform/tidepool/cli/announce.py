"""Tell a running cluster what a verb has changed, after the verb has said so itself: the change stands in any case."""

from __future__ import annotations

import sys


def announce(*models: str, keys: bool = False) -> None:
    """Have the replicas take up the versions of these models, or the keys, at once; say on stderr whether they have."""
    from tidepool.cluster.local import connect
    from tidepool.errors import NoCluster, TidepoolError
    from tidepool.settings import Settings

    try:
        with connect(Settings()):
            _tell(models, keys)
    except NoCluster:
        print("no cluster of this home is running; replicas of others look every few seconds", file=sys.stderr)
    except TidepoolError as error:
        print(f"warning: that is done, but no cluster was told: {error}", file=sys.stderr)
    else:
        print("every replica has been told", file=sys.stderr)


def answering(name: str, version: int, http_port: int, deadline_s: float = 10.0) -> str:
    """Have the service at this port of this machine answer with a new champion, if it has the model; returns what is to
    be said of that.

    Raises:
        ClusterError: nobody answers there, or not with this version within `deadline_s`.
    """
    from tidepool.cli.client import in_service
    from tidepool.cli.output import command
    from tidepool.serve.rollout import await_answer

    if name not in in_service(http_port):
        return f"{name} isn't in service: `{command()} deploy {name}` has it answer with version {version}"
    announce(name)
    await_answer(http_port, f"/v2/models/{name}/versions/{version}/ready", deadline_s)
    return f"{name} answers with version {version} now, at http://localhost:{http_port}/v2/models/{name}/infer"


def _tell(models: tuple[str, ...], keys: bool) -> None:
    from ray.exceptions import RayError

    from tidepool.errors import ClusterError
    from tidepool.serve.rollout import announce as tell

    try:
        tell(*models, keys=keys)
    except RayError as error:
        seen = str(error).strip().rpartition("\n")[2]
        raise ClusterError("the replicas can't be told", seen=seen, remedy="`tidepool status`") from error
