"""Machines that Ray's cluster autoscaler adds when the pool wishes for them.

The autoscaler is told a level, how many should be there, and no order: to say it again changes nothing, and after a
restart the coordinator says what it wants then. It is met by machines of a node type with a label of its own, so that
the pool's own machines never pass for bought ones, and a bought one is known as such whoever asks.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidepool.errors import ClusterError
from tidepool.pool.state import Snapshot

LABEL, BOUGHT = "tidepool/pool", "bought"
"""The label of node types that may be bought, in `available_node_types` of the cluster's file."""

Bundle = dict[str, float]
"""Amounts by resource."""


def ordered(pool: Snapshot, each: float) -> list[Bundle]:
    """What the autoscaler should keep for the pool: a bundle of `each` accelerators for every bought machine that is
    there to stay, and for every one that is to come.

    >>> from tidepool.pool.state import Machine, Node
    >>> nodes = (Node("own", 4), Node("new", 4, bought=True), Node("old", 4, bought=True, closing=True))
    >>> ordered(Snapshot(nodes, coming=(Machine("7.0", 4),)), 4)
    [{'GPU': 4}, {'GPU': 4}]
    """
    staying = sum(node.bought and not node.closing for node in pool.nodes)
    return [{pool.accelerator: each} for _ in range(staying + len(pool.coming))]


def ask(bundles: Sequence[Bundle]) -> None:
    """Tell the autoscaler to keep so much on machines with the label; the last word counts. Needs version 2 of it.

    Raises:
        ClusterError: it couldn't be told.
    """
    from ray.autoscaler.sdk import request_resources

    try:
        request_resources(bundles=list(bundles), bundle_label_selectors=[{LABEL: BOUGHT} for _ in bundles])
    except Exception as error:  # Ray raises what gRPC does, or its own
        raise ClusterError("the cluster autoscaler can't be told what to keep", seen=error) from error
