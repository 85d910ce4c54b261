"""What keeps a local cluster's servers on loopback where Ray has no setting for that: see `environment.LOCAL`."""

from __future__ import annotations

import os
from typing import Any

HOOK = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
"""Names what a worker process of Ray runs first."""


def is_wanted() -> bool:
    """Whether this process belongs to a cluster that keeps to loopback."""
    return os.environ.get(HOOK) == f"{__name__}.{bind_replicas.__name__}"


def bind_replicas() -> None:
    """Make Serve's replicas listen to one another on loopback alone. Every worker process runs this first.

    Beside its HTTP port every replica opens one for calls from other deployments, on every interface whatever host
    Serve was given. It unpickles what it is sent: without tokens, whoever reaches it can run code.
    """
    from ray._common import tls_utils

    add_port = tls_utils.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    tls_utils.add_port_to_grpc_server = add_loopback_port


def bind_grpc() -> None:
    """Make the gRPC servers of Serve's replicas and proxies listen on loopback, if this is a local cluster.

    For processes that have imported Serve, which takes too long for every worker.
    """
    if not is_wanted():
        return
    from ray.serve._private import default_impl

    add_address = default_impl.add_grpc_address

    def add_loopback_address(server: Any, address: str) -> None:
        add_address(server, address.replace("[::]", "127.0.0.1"))

    default_impl.add_grpc_address = add_loopback_address
