"""Ray Data reads the request log back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tidepool.serve.masking import Mask
from tidepool.serve.requestlog import Record, RequestLog


@pytest.mark.usefixtures("ray_cluster")
def test_ray_data_reads_the_log_of_two_versions(tmp_path: Path) -> None:
    import ray

    from tidepool.data.tasks import silent_ray_data

    log = RequestLog(str(tmp_path), 100)
    for version in ("1", "2"):
        image = np.full((2, 3), float(version), np.float32)
        log.offer(Record(0.0, f"r{version}", version, "d", {"image": image}, 2, Mask({}), {"digit": np.array([1, 2])}))
    log.close()
    with silent_ray_data():
        rows = sorted(ray.data.read_parquet(str(tmp_path)).take_all(), key=lambda row: (row["id"], row["row"]))
    assert [(row["id"], row["row"], str(row["version"]), row["out.digit"]) for row in rows] == [
        ("r1", 0, "1", 1),
        ("r1", 1, "1", 2),
        ("r2", 0, "2", 1),
        ("r2", 1, "2", 2),
    ]
    assert list(rows[3]["in.image"]) == [2.0, 2.0, 2.0]
