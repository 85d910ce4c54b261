"""A local cluster's worker processes run `bind_replicas` first: see `environment.LOCAL`."""

from __future__ import annotations

from typing import Any


def bind_replicas() -> None:
    """Make Serve's replicas listen to one another on loopback alone.

    Beside its HTTP port every replica opens one for calls from other deployments, on every interface whatever host
    Serve was given. It unpickles what it is sent: without tokens, whoever reaches it can run code.
    """
    from ray._common import tls_utils

    add_port = tls_utils.add_port_to_grpc_server

    def add_loopback_port(server: Any, address: str) -> Any:
        return add_port(server, address.replace("[::]", "127.0.0.1"))

    tls_utils.add_port_to_grpc_server = add_loopback_port
