"""Word count with tidepool and its peers, in turn, on one corpus: `python benchmarks/mapreduce`.

Polars takes part where it is installed; it is no dependency of tidepool.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.data

from tidepool.data.mapreduce import map_reduce, sum_by_key
from tidepool.data.words import count_words

Totals = tuple[int, int]
"""Distinct words, all words."""


def main() -> None:
    """Write the corpus, let everybody count it in turn, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the corpus")
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the median counts")
    options = parser.parse_args()

    contestants: dict[str, Callable[[Path], Totals]] = {
        "tidepool `map_reduce`": tidepool,
        "collections.Counter": counter,
        "Ray Data groupby": ray_data,
    }
    if find_spec("polars"):
        contestants["Polars"] = polars
    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    with tempfile.TemporaryDirectory() as folder:
        warm, corpus = Path(folder, "warm.txt"), Path(folder, "corpus.txt")
        write_corpus(warm, 40 << 20)
        write_corpus(corpus, options.megabytes * 1_000_000)
        found = set()
        for _ in range(options.repeats):
            for name, count in contestants.items():
                count(warm)  # starts processes, imports modules: not what is measured
                began = time.perf_counter()
                found.add(count(corpus))
                seconds[name].append(time.perf_counter() - began)
    ((distinct, total),) = found  # everybody counted the same
    print(f"{options.megabytes} MB, {total:,} words, {distinct:,} distinct, {os.cpu_count()} CPUs; seconds\n")
    print("| | median | fastest | slowest |\n|---|---|---|---|")
    for name, took in sorted(seconds.items(), key=lambda item: statistics.median(item[1])):
        print(f"| {name} | {statistics.median(took):.2f} | {min(took):.2f} | {max(took):.2f} |")


def tidepool(corpus: Path) -> Totals:
    """As in jobs/wordcount.py, without the sort and the file at its end."""
    counts = map_reduce(corpus, map=count_words, reduce=sum_by_key)
    return counts.num_rows, pc.sum(counts["count"]).as_py()


def counter(corpus: Path) -> Totals:
    """The standard library, one process."""
    counts: Counter[str] = Counter()
    with corpus.open(encoding="utf-8") as lines:
        for line in lines:
            counts.update(line.split())
    return len(counts), counts.total()


def ray_data(corpus: Path) -> Totals:
    """Ray Data with its defaults, the same Arrow kernel in its map step."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    words = ray.data.read_text(str(corpus)).map_batches(count_words, batch_format="pyarrow", batch_size=None)
    counts = pa.concat_tables(ray.get(words.groupby("word").sum("count").to_arrow_refs()))
    return counts.num_rows, pc.sum(counts["sum(count)"]).as_py()


def polars(corpus: Path) -> Totals:
    """Polars' streaming engine, as many threads as CPUs; lines come in as a CSV file of one column."""
    import polars as pl

    lines = pl.scan_csv(corpus, has_header=False, separator="\x01", quote_char=None, new_columns=["text"])
    words = lines.select(pl.col("text").str.split(" ").explode().alias("word"))
    counts = words.group_by("word").len("count").collect(engine="streaming")
    return counts.height, int(counts["count"].sum())


def write_corpus(path: Path, size: int, vocabulary: int = 4_000_000, exponent: float = 1.15) -> None:
    """Lines of ten made-up words, the same every time; frequencies are Zipf's, with a long tail of rare words."""
    draw = np.random.default_rng(0)
    shares = np.cumsum(1 / (np.arange(vocabulary) + 2.7) ** exponent)
    words = spell(np.arange(vocabulary))
    starts = np.arange(0, 1_000_001, 10, np.int32)
    with path.open("wb") as file:
        while (room := size - file.tell()) > 0:
            chosen = pa.array(np.searchsorted(shares, draw.random(1_000_000) * shares[-1]))
            lines = pc.binary_join(pa.ListArray.from_arrays(starts, words.take(chosen)), " ")
            file.write("\n".join(lines.to_pylist()).encode()[: room - 1] + b"\n")


def spell(ranks: npt.NDArray[np.int64]) -> pa.StringArray:
    """A word for each rank, longer the rarer it is, as in English: 3 letters among the first, 10 among the last."""
    draw = np.random.default_rng(1)
    digits = ranks[:, None] // 26 ** np.arange(5) % 26
    letters = np.concatenate([digits, draw.integers(0, 26, (len(ranks), 11))], axis=1) + ord("a")
    lengths = np.maximum(2.2 + 0.55 * np.log(ranks + 1) + draw.normal(0, 1.5, len(ranks)), 1).astype(int)
    lengths = np.clip(lengths, np.ceil(np.log(ranks + 2) / np.log(26)), 16).astype(int)  # enough to tell ranks apart
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    data = letters[np.arange(16) < lengths[:, None]].astype(np.uint8)
    return pa.StringArray.from_buffers(len(ranks), pa.py_buffer(offsets), pa.py_buffer(data))


if __name__ == "__main__":
    main()
