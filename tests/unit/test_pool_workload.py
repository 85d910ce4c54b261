"""Jobs and requests for simulations: read, generated, and brought to size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tidepool.errors import DataError
from tidepool.pool import workload
from tidepool.pool.workload import DAY_S, Jobs


@pytest.fixture
def jobs_csv(tmp_path: Path) -> Path:
    path = tmp_path / "jobs.csv"
    path.write_text("timestamp,duration,num_gpus\n2017-10-09 07:01:55,66.0,1\n2017-10-09 07:00:00,120.5,8\n")
    return path


def test_jobs_come_in_order_of_arrival_from_zero(jobs_csv: Path) -> None:
    jobs = workload.read_jobs(jobs_csv)
    assert jobs.arrival_s.tolist() == [0.0, 115.0]
    assert jobs.duration_s.tolist() == [120.5, 66.0]
    assert jobs.accelerators.tolist() == [8, 1]
    assert jobs.work == 8 * 120.5 + 66


def test_requests_are_read_to_the_fraction_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("TIMESTAMP,x\n2023-11-16 18:15:50.9951690,1\n2023-11-16 18:15:46.6805900,2\n")
    assert workload.read_requests(path).tolist() == pytest.approx([0.0, 4.314579])


def test_what_is_no_trace_is_refused_by_name(tmp_path: Path, jobs_csv: Path) -> None:
    with pytest.raises(DataError, match="lacks columns"):
        workload.read_requests(jobs_csv)
    with pytest.raises(DataError, match="can't read the trace"):
        workload.read_jobs(tmp_path / "none.csv")
    broken = tmp_path / "broken.csv"
    broken.write_text("TIMESTAMP\nyesterday\n")
    with pytest.raises(DataError, match="not a time"):
        workload.read_requests(broken)


def test_generated_jobs_have_the_traces_features() -> None:
    jobs = workload.generate_jobs(20_000, 7 * DAY_S)
    assert np.mean(jobs.accelerators == 1) == pytest.approx(0.93, abs=0.01)
    assert np.median(jobs.duration_s) == pytest.approx(1144, rel=0.1)
    assert np.quantile(jobs.duration_s, 0.9) == pytest.approx(11_265, rel=0.15)
    hours = np.bincount((jobs.arrival_s % DAY_S // 3600).astype(int))
    assert hours[12] > 2 * hours[0]


def test_a_draw_has_the_work_that_was_asked_for() -> None:
    jobs = workload.generate_jobs(5000, 7 * DAY_S)
    drawn = workload.fit_jobs(jobs, DAY_S, work=1e7, at_most=8, longest_s=DAY_S)
    assert drawn.work == pytest.approx(1e7, rel=0.02)
    assert drawn.accelerators.max() <= 8
    assert 0 <= drawn.arrival_s.min() <= drawn.arrival_s.max() < DAY_S
    assert np.all(np.diff(drawn.arrival_s) >= 0)


def test_long_jobs_are_cut() -> None:
    jobs = Jobs(np.array([0.0, 1.0]), np.array([10.0, 9e6]), np.array([1, 1]))
    assert workload.fit_jobs(jobs, 100.0, work=1e4, at_most=1, longest_s=500).duration_s.max() <= 500


def test_a_shape_has_mean_one_and_keeps_the_waves() -> None:
    waves = np.concatenate([np.linspace(0, 600, 300), np.linspace(600, 1200, 900)])
    for shape in (workload.shape_of(waves, bin_s=10.0), workload.generate_shape()):
        assert shape.mean() == pytest.approx(1.0)
    shape = workload.shape_of(waves, bin_s=10.0)
    assert shape[90] > 2 * shape[30]


def test_rates_swing_by_the_day_about_their_mean() -> None:
    rates = workload.rates(workload.generate_shape(), 8640, 10.0, apps=3, mean=50.0)
    assert rates.shape == (8640, 3)
    assert rates.mean() == pytest.approx(50.0, rel=0.05)
    assert rates[4000:4640].mean() > 2 * rates[:320].mean()


def test_a_load_is_scaled_until_it_has_the_size_that_is_wanted() -> None:
    found = workload.scaled(lambda mean: np.full(4, mean), lambda rates: float(rates.sum()), wanted=100.0)
    assert found.sum() == pytest.approx(100.0, rel=1e-3)
