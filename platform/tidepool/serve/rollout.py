"""Puts applications on a cluster, each without touching the others; for a driver that is connected."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from tidepool.errors import ClusterError
from tidepool.serve import versions

if TYPE_CHECKING:
    from ray.serve import Application

LOGGING = {"enable_access_log": False, "log_level": "WARNING"}
"""No access log: its buffer holds up a replica for 18 ms at every thousandth request."""


def roll_out(name: str, prefix: str, fingerprint: str, application: Callable[[], Application]) -> None:
    """Run an application, unless it runs already as made from what `fingerprint` stands for: Serve itself would replace
    its replicas all the same.

    Raises:
        ClusterError: its replicas don't start, with their own reason.
    """
    import ray
    from ray import serve

    status = serve.status().applications.get(name)
    is_running = status is not None and status.status == "RUNNING"
    if is_running and ray.get(versions.keeper().noted.remote(name)) == fingerprint:
        return
    try:
        serve.run(application(), name=name, route_prefix=prefix)
    except Exception as error:
        raise ClusterError(f"{name} doesn't start", seen=_reason(name, error), remedy="correct that") from error
    ray.get(versions.keeper().note.remote(name, fingerprint))


def _reason(name: str, error: Exception) -> str:
    """Why an application doesn't start: what its replicas said, the last of it."""
    from ray import serve

    status = serve.status().applications.get(name)
    if status is None:
        return str(error)
    said = [deployment.message for deployment in status.deployments.values() if deployment.message]
    return (" ".join(said) or status.message)[-2000:]


def announce(*names: str, keys: bool = False) -> None:
    """Tell the replicas at once that the versions of these models, or the keys, have changed."""
    tell(*(f"model:{name}" for name in names), *([versions.KEYS] if keys else []))


def tell(*topics: str) -> None:
    """Tell the replicas at once what is new on these topics."""
    import ray

    ray.get([versions.keeper().refresh.remote(topic) for topic in topics])


def await_answer(http_port: int, path: str, deadline_s: float = 30.0) -> None:
    """Wait until a GET of `path` is answered with 200.

    Raises:
        ClusterError: it isn't within `deadline_s`.
    """
    import httpx

    until = time.monotonic() + deadline_s
    seen: object = None
    while time.monotonic() < until:
        try:
            seen = httpx.get(f"http://127.0.0.1:{http_port}{path}", timeout=2.0, trust_env=False).status_code
        except httpx.TransportError as error:
            seen = error
        if seen == 200:
            return
        time.sleep(0.05)
    raise ClusterError(f"port {http_port} doesn't answer {path}", seen=seen, remedy="`tidepool doctor`")


def await_listener(grpc_port: int, deadline_s: float = 30.0) -> None:
    """Wait until this machine's front end takes gRPC calls.

    Raises:
        ClusterError: it doesn't within `deadline_s`.
    """
    until = time.monotonic() + deadline_s
    while True:
        try:
            socket.create_connection(("127.0.0.1", grpc_port), timeout=2.0).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                remedy = "Serve was started otherwise: `serve shutdown`, and again"
                raise ClusterError(f"port {grpc_port} takes no gRPC calls", seen=error, remedy=remedy) from None
        time.sleep(0.05)
