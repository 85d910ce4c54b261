"""`tidepool cluster equip`: what `tidepool up` adds to Ray, on a cluster that is there already."""

from __future__ import annotations

import os

import typer

from tidepool.cli.output import JSON, as_json


def equip(
    http_port: int = typer.Option(8000, help="Port for inference requests, on every machine with replicas."),
    grpc_port: int = typer.Option(8001, help="Port for gRPC, there too."),
    host: str = typer.Option("0.0.0.0", help="Where both listen; 127.0.0.1 does for a single machine."),
    as_document: bool = JSON,
) -> None:
    """Start front ends, gateway and pool on the cluster at RAY_ADDRESS, from one of its machines. Starts no Ray."""
    from tidepool.cluster.local import connect
    from tidepool.settings import Settings

    settings = Settings()
    with connect(settings):
        from tidepool.serve.app import start

        start(settings, http_port, grpc_port, host)
    if as_document:
        as_json({"address": os.environ.get("RAY_ADDRESS"), "http_port": http_port, "grpc_port": grpc_port})
        return
    print(f"requests   http://127.0.0.1:{http_port}/v2\ngRPC       127.0.0.1:{grpc_port}")
