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


def _tell(models: tuple[str, ...], keys: bool) -> None:
    from ray.exceptions import RayError

    from tidepool.errors import ClusterError
    from tidepool.serve.rollout import announce as tell

    try:
        tell(*models, keys=keys)
    except RayError as error:
        seen = str(error).strip().rpartition("\n")[2]
        raise ClusterError("the replicas can't be told", seen=seen, remedy="`tidepool status`") from error
