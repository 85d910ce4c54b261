"""Count the words of text: python jobs/wordcount.py INPUT OUTPUT.

INPUT is a file or a folder of UTF-8 text, compressed or not, or a URI of one; OUTPUT is the Parquet file to write,
with the columns `word` and `count`, the most frequent word first, equally frequent ones in the order of their bytes.
"""

from __future__ import annotations

import argparse
import logging
import os

import pyarrow as pa
import ray
from pyarrow import parquet

from tidepool import storage
from tidepool.cli.exits import guarded
from tidepool.data.mapreduce import map_reduce, sum_by_key
from tidepool.data.sources import pieces
from tidepool.data.words import count_words
from tidepool.telemetry.progress import LineProgress


@guarded
def main() -> None:
    """Count, sort, write, and say how many there were."""
    parser = argparse.ArgumentParser(description="Count the words of text.")
    parser.add_argument("input", help="file or folder of UTF-8 text, or its URI")
    parser.add_argument("output", help="Parquet file to write, or its URI")
    arguments = parser.parse_args()

    text = pieces(arguments.input, format="text")
    ray.init(log_to_driver=False, logging_level=logging.WARNING)
    # no combine: count_words leaves each word once per piece already
    counts = map_reduce(text, map=count_words, reduce=sum_by_key, progress=LineProgress())
    counts = counts.sort_by([("count", "descending"), ("word", "ascending")])

    sink = pa.BufferOutputStream()
    parquet.write_table(counts, sink)
    folder, name = os.path.split(arguments.output)
    storage.write_file(folder or ".", name, sink.getvalue().to_pybytes())
    print(f"{counts.num_rows:,} words in {arguments.output}")


if __name__ == "__main__":
    main()
