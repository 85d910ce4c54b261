"""Work for simulations and replays: training jobs and requests, from public traces or generated.

Training jobs as in Microsoft's Philly trace (columns `timestamp, duration, num_gpus`), requests as in Azure's LLM
inference trace (column `TIMESTAMP`). What is generated has their main features: most jobs small, a few holding most of
the accelerators' time; requests that swing by the day and burst by the minute.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tidepool.errors import DataError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

DAY_S = 86_400.0
HOUR_S = 3_600.0


@dataclass(frozen=True)
class Jobs:
    """Training jobs in order of arrival, one element each."""

    arrival_s: Floats
    duration_s: Floats
    """On as many accelerators as were asked for."""
    accelerators: Ints

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def columns(self) -> tuple[Floats, Ints, Floats]:
        """(arrival, accelerators, duration)."""
        return self.arrival_s, self.accelerators, self.duration_s

    @property
    def work(self) -> float:
        """Accelerator-seconds of all together."""
        return float(self.duration_s @ self.accelerators)


def read_jobs(path: Path) -> Jobs:
    """The jobs of a CSV with `timestamp, duration, num_gpus`; the first arrives at 0.

    Raises:
        DataError: no such file, or a column is missing or no number.
    """
    rows = [
        (_seconds(row["timestamp"]), float(row["duration"]), int(row["num_gpus"]))
        for row in _rows(path, "timestamp", "duration", "num_gpus")
    ]
    return _in_order(*np.array(sorted(rows), dtype=float).T)


def generate_jobs(count: int, seconds: float, seed: int = 0) -> Jobs:
    """Jobs with Philly's sizes and durations (median 19 minutes, 90th percentile 3 hours), more of them by day."""
    random = np.random.default_rng(seed)
    arrival = random.uniform(0, seconds, 4 * count)
    by_day = random.uniform(0, 2, len(arrival)) < 1 - 0.6 * np.cos(2 * np.pi * arrival / DAY_S)
    size = random.choice([1, 2, 4, 8, 16, 32], count, p=[0.93, 0.022, 0.023, 0.021, 0.003, 0.001])
    duration = np.exp(random.normal(math.log(1144), 1.79, count)) * np.where(size >= 8, 5.0, 1.0)
    return _in_order(np.resize(arrival[by_day], count), np.maximum(duration, 1.0), size)


def fit_jobs(jobs: Jobs, seconds: float, work: float, at_most: int, longest_s: float, seed: int = 0) -> Jobs:
    """A draw from `jobs` that arrives within `seconds` and adds up to about `work` accelerator-seconds.

    Drawn with replacement, each at its hour of the week plus up to half an hour, so that any pool's size can be filled;
    jobs of more than `at_most` accelerators are left out, longer ones than `longest_s` are cut: a few jobs that outlast
    the simulation would decide its averages.
    """
    random = np.random.default_rng(seed)
    fitting = np.flatnonzero(jobs.accelerators <= at_most)
    duration = np.minimum(jobs.duration_s, longest_s)
    mean = float(np.mean(duration[fitting] * jobs.accelerators[fitting]))
    chosen = random.choice(fitting, max(1, round(work / mean)))
    arrival = (jobs.arrival_s[chosen] + random.uniform(0, HOUR_S / 2, len(chosen))) % seconds
    exact = work / float(duration[chosen] @ jobs.accelerators[chosen])
    return _in_order(arrival, np.minimum(duration[chosen] * exact, longest_s), jobs.accelerators[chosen])


def read_requests(path: Path) -> Floats:
    """The arrival times of a CSV with `TIMESTAMP`, in seconds from the first, in order.

    Raises:
        DataError: no such file, no such column, or a value that is no time.
    """
    times = np.array(sorted(_seconds(row["TIMESTAMP"]) for row in _rows(path, "TIMESTAMP")))
    arrivals: Floats = times - times[0]
    return arrivals


def shape_of(requests: Floats, bin_s: float = 10.0, smooth_s: float = 60.0) -> Floats:
    """How a trace's rate moves about its mean: a value a bin, mean 1, smoothed; a last part of a minute is dropped."""
    whole = requests[requests < requests[-1] // 60 * 60]
    counts = np.bincount((whole / bin_s).astype(int)).astype(float)
    kernel = max(1, round(smooth_s / bin_s))
    around = np.concatenate([counts[-(kernel // 2) :], counts, counts[: kernel - 1 - kernel // 2]])
    smooth = np.convolve(around, np.ones(kernel) / kernel, mode="valid")
    shape: Floats = smooth / smooth.mean()
    return shape


def generate_shape(bins: int = 360, bin_s: float = 10.0, seed: int = 0) -> Floats:
    """A shape as `shape_of` gives it: slow waves, and about four bursts an hour of up to three times the rate."""
    random = np.random.default_rng(seed)
    slow = np.cumsum(random.normal(0, 0.02, bins))
    rate = np.exp(slow - np.linspace(0, slow[-1], bins))
    time = np.arange(bins) * bin_s
    for start in random.uniform(0, time[-1], max(1, round(4 * bins * bin_s / HOUR_S))):
        rate += random.uniform(0.5, 2) * np.exp(-((time - start) ** 2) / (2 * random.uniform(20, 120) ** 2))
    shape: Floats = rate / rate.mean()
    return shape


def rates(shape: Floats, bins: int, bin_s: float, apps: int, mean: float, swing: float = 0.5, seed: int = 0) -> Floats:
    """Requests a second of each application (column) in each bin (row): `shape` over and over, swinging by the day.

    Each application begins elsewhere in the shape. The rate goes from `1 - swing` of `mean` at night to `1 + swing` by
    day; what arrives in a bin is Poisson. `shape` has one value a bin of the same length.
    """
    random = np.random.default_rng(seed)
    index = np.arange(bins)[:, None] + random.integers(0, len(shape), apps)
    daily = 1 - swing * np.cos(2 * np.pi * np.arange(bins) * bin_s / DAY_S)
    expected = mean * shape[index % len(shape)] * daily[:, None]
    counts: Floats = random.poisson(expected * bin_s) / bin_s
    return counts


def scaled(make: Callable[[float], Floats], size: Callable[[Floats], float], wanted: float) -> Floats:
    """What `make` gives for the mean rate at which `size` of it is `wanted`, found by bisection; `size` must rise."""
    low, high = 0.0, 1.0
    while size(make(high)) < wanted:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if size(make(middle)) < wanted else (low, middle)
    return make(high)


def _in_order(arrival: Floats, duration: Floats, accelerators: npt.ArrayLike) -> Jobs:
    order = np.argsort(arrival, kind="stable")
    size = np.asarray(accelerators)[order].astype(np.int64)
    return Jobs(arrival[order] - arrival.min(), duration[order], size)


def _rows(path: Path, *columns: str) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path} lacks columns", seen=reader.fieldnames, allowed=", ".join(columns))
            yield from reader
    except OSError as error:
        seen, remedy = f"{path}: {error.strerror}", "give the path of a CSV file"
        raise DataError("can't read the trace", seen=seen, remedy=remedy) from None


def _seconds(text: str) -> float:
    """Seconds since the epoch of `2017-10-09 07:01:55` or `2023-11-16 18:15:46.6805900`, or of a plain number."""
    try:
        whole, _, fraction = text.partition(".")
        if "-" not in whole:
            return float(text)
        return (datetime.fromisoformat(whole) - datetime(1970, 1, 1)).total_seconds() + float(f"0.{fraction or 0}")
    except ValueError:
        raise DataError("not a time", seen=text, allowed="2023-11-16 18:15:46.68 or seconds") from None
