"""Imported by Ray in every worker process as it starts: see `RAY_preload_python_modules` in `cluster.environment`.

A worker that `standby` ordered takes its note and imports what replicas run with, before it has anything to do. It
can't be done later, beside a task: two threads that import Serve at once see modules that are half there.
"""

from __future__ import annotations

import importlib
import os

import ray
from ray.experimental import internal_kv

from tidepool.serve.standby import NAMESPACE, note, signature

NEEDED = ("tidepool.serve.app", "ray.serve._private.replica", "onnxruntime")

node_id = ray.get_runtime_context().get_node_id()
if internal_kv._internal_kv_del(note(node_id), namespace=NAMESPACE):
    internal_kv._internal_kv_put(signature(node_id, os.getpid()), b"", namespace=NAMESPACE)
    for name in NEEDED:
        importlib.import_module(name)
