"""Imported by Ray in every worker process as it starts: see `RAY_preload_python_modules` in `cluster.environment`.

A worker that `standby` ordered takes its note and imports what replicas run with, before it has anything to do. It
can't be done later, beside a task: two threads that import Serve at once see modules that are half there.
"""

from __future__ import annotations

import importlib
import logging
import os

import ray
from ray.experimental import internal_kv

from tidepool.cluster import loopback
from tidepool.serve.standby import NAMESPACE, note, signature

NEEDED = ("tidepool.serve.app", "ray.serve._private.replica", "onnxruntime")
NEEDED_ON_GPUS = ("tidepool.serve.torchengine",)


def warm() -> None:
    """Take this node's note, if there is one, sign, and import what a replica needs.

    One that can't has signed all the same: where imports fail, they would fail in the next that is ordered, too.
    """
    node_id = ray.get_runtime_context().get_node_id()
    if not internal_kv._internal_kv_del(note(node_id), namespace=NAMESPACE):
        return
    internal_kv._internal_kv_put(signature(node_id, os.getpid()), b"", namespace=NAMESPACE)
    if loopback.is_wanted():
        loopback.bind_replicas()  # Ray's own call of it comes after the imports, which take the names as they are
    from tidepool.serve.engine import has_gpu

    for name in (*NEEDED, *(NEEDED_ON_GPUS if has_gpu() else ())):
        importlib.import_module(name)


try:
    warm()
except Exception:  # Ray would end the worker, whatever it is for: training's as well
    logging.getLogger(__name__).warning("this process isn't ready for a replica", exc_info=True)
