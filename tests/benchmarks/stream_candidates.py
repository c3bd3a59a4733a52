"""The stream, its limits and its peers: each reads the same shards once for every line on standard input.

    python -m tests.benchmarks.stream_candidates NAME [ARGUMENT…]     started by the benchmarks, not by hand

Prints the seconds of each pass, and the CPU time of the process, as JSON. Imports, and what is made once (manifest,
clients), are not timed; with BENCHMARK_FRESH they are, but for torch and pyarrow, which are imported before.
"""

import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

GLOB = "s3://taxi/csv/part-*.csv"
ONE = "s3://taxi/one/part-*.csv"
BATCH = 2**20


def timed(run: Callable[[], int], rows: int) -> Callable[[], float]:
    def measure() -> float:
        began = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - began
        assert found == rows, f"{found} rows read, {rows} expected"
        return seconds

    return measure


def ours(cache: str = "off", glob: str = GLOB, batches: str = "") -> Callable[[], float]:
    """The stream; cache: off, cold (written anew each time) or warm."""
    from tasks.streaming import CacheSettings, ObjectStorageDataset, locate

    manifest = locate(glob)
    folder = tempfile.mkdtemp(prefix="cache-", dir=os.environ.get("BENCHMARK_CACHE"))
    batch_size = manifest.rows // int(batches) if batches else BATCH

    def run() -> int:
        if cache == "cold":
            shutil.rmtree(folder)
        settings = CacheSettings(enabled=cache != "off", folder=folder)
        dataset = ObjectStorageDataset.from_manifest(manifest, batch_size=batch_size, epochs=1, cache=settings)
        return sum(map(len, dataset))

    return timed(run, manifest.rows)


def limit(checked: str = "checked", threads: str = "4") -> Callable[[], float]:
    """What a pass costs at least: fetch and decode on every core; checked: MD5, isfinite and row-major batches too."""
    import hashlib

    import boto3
    import numpy as np
    import pyarrow
    from botocore.config import Config
    from pyarrow import csv

    from tasks.streaming import locate

    manifest = locate(GLOB)
    client = boto3.client("s3", config=Config(max_pool_connections=64))
    first_rows = [0, *itertools.accumulate(manifest.counts)]
    types = dict.fromkeys(manifest.columns, pyarrow.float64())

    def load(index: int, batches: list[Any]) -> int:
        shard = manifest.shards[index]
        data = client.get_object(Bucket="taxi", Key=shard.uri.removeprefix("s3://taxi/"))["Body"].read()
        options = csv.ReadOptions(use_threads=False, block_size=len(data) + 1)
        if checked == "checked":
            assert hashlib.md5(data, usedforsecurity=False).hexdigest() == shard.etag
        table = csv.read_csv(
            pyarrow.BufferReader(data), read_options=options, convert_options=csv.ConvertOptions(column_types=types)
        )
        if checked == "checked":
            columns = [column.to_numpy() for column in table.columns]
            assert all(np.isfinite(column).all() for column in columns)
            row = 0
            while row < shard.rows:
                number, at = divmod(first_rows[index] + row, BATCH)
                count = min(shard.rows - row, len(batches[number]) - at)
                for place, column in enumerate(columns):
                    batches[number][at : at + count, place] = column[row : row + count]
                row += count
        return int(table.num_rows)

    def run() -> int:
        sizes = [min(BATCH, manifest.rows - at) for at in range(0, manifest.rows, BATCH)]
        batches = [np.empty((size, len(manifest.columns))) for size in sizes] if checked == "checked" else []
        with ThreadPoolExecutor(int(threads)) as pool:
            return sum(pool.map(lambda index: load(index, batches), range(len(manifest.shards))))

    return timed(run, manifest.rows)


def pandas() -> Callable[[], float]:
    """pandas in chunks, over s3fs, shard after shard."""
    import pandas as pd  # type: ignore[import-untyped]
    import s3fs
    import torch

    filesystem = s3fs.S3FileSystem()
    paths = sorted(filesystem.glob(GLOB))

    def run() -> int:
        rows = 0
        for path in paths:
            with filesystem.open(path, block_size=2**24) as file:
                for chunk in pd.read_csv(file, chunksize=BATCH):
                    rows += len(torch.from_numpy(chunk.to_numpy(dtype="float64")))
        return rows

    return timed(run, 4_000_000)


def pyarrow_dataset() -> Callable[[], float]:
    """pyarrow.dataset over its own S3, cut to row-major batches."""
    import numpy as np
    import pyarrow
    from pyarrow import csv, dataset, fs

    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    filesystem = fs.S3FileSystem(endpoint_override=endpoint, scheme="http", region="us-east-1")
    kind = dataset.CsvFileFormat(read_options=csv.ReadOptions(block_size=2**22))
    files = dataset.dataset("taxi/csv/", filesystem=filesystem, format=kind, exclude_invalid_files=False)

    def run() -> int:
        rows, held = 0, []
        for piece in files.to_batches(batch_size=BATCH):
            held.append(piece)
            if sum(map(len, held)) >= BATCH:
                rows += len(to_rows(pyarrow, np, held))
                held = []
        return rows + len(to_rows(pyarrow, np, held))

    return timed(run, 4_000_000)


def to_rows(pyarrow: Any, np: Any, pieces: list[Any]) -> Any:
    if not pieces:
        return []
    return np.stack(
        [column.to_numpy().astype("float64") for column in pyarrow.Table.from_batches(pieces).columns], axis=1
    )


def polars(threads: str = "4") -> Callable[[], float]:
    """polars over boto3, a shard on each thread, row-major as it comes: not cut to batches, and nothing checked.

    Its own scan_csv refuses rclone's answers ("Received non-partial response when range requested").
    """
    import boto3
    import polars as pl

    client = boto3.client("s3")
    listing = client.list_objects_v2(Bucket="taxi", Prefix="csv/part-")["Contents"]

    def load(entry: dict[str, Any]) -> int:
        data = client.get_object(Bucket="taxi", Key=entry["Key"])["Body"].read()
        return len(pl.read_csv(data).to_numpy(order="c"))

    def run() -> int:
        with ThreadPoolExecutor(int(threads)) as pool:
            return sum(pool.map(load, listing))

    return timed(run, 4_000_000)


def kaen(copies: str = "fresh", glob: str = GLOB, batches: str = "") -> Callable[[], float]:
    """kaen 1.0.1.31; it is endless: as many whole batches as the rows make. copies: "kept" from pass to pass, or not"""
    rows = 4_000_000 if glob == GLOB else 1_000_000
    count = int(batches) if batches else rows // BATCH

    def run() -> float:
        stream = open_kaen(rows // count if batches else BATCH, glob, copies)
        began = time.perf_counter()
        found = sum(len(next(stream)) for _ in range(count))
        seconds = time.perf_counter() - began
        return seconds * rows / found  # as if the last, short batch were read too

    return run


def open_kaen(batch_rows: int, glob: str = GLOB, copies: str = "kept") -> Iterator[Any]:
    """kaen's endless stream of tensors [batch_rows, columns] in float64, from the first row on.

    It reads through local copies of whole shards: "kept" from an earlier stream of this process, or fetched anew
    ("fresh").
    """
    import logging

    from fsspec.implementations.cached import WholeFileCacheFileSystem
    from kaen.torch import ObjectStorageDataset

    logging.disable()
    if copies == "fresh":
        WholeFileCacheFileSystem.clear_instance_cache()
    metadata = glob.replace("part-*.csv", ".meta/shards/part-00000.csv")
    dataset = ObjectStorageDataset(
        glob, partitions_glob=metadata, batch_size=batch_rows, storage_options={"anon": False}
    )
    stream: Iterator[Any] = iter(dataset)
    return stream


def answer(makes: Mapping[str, Any]) -> None:
    """Measure the candidate that the command line names once for every line on standard input."""
    import pyarrow.csv  # noqa: F401
    import torch  # noqa: F401

    name, *arguments = sys.argv[1:]
    make, fresh = makes[name], "BENCHMARK_FRESH" in os.environ
    run = None if fresh else make(*arguments)
    for _ in sys.stdin:
        began, busy = time.perf_counter(), time.process_time()
        once = run or make(*arguments)
        made, made_busy = time.perf_counter() - began, time.process_time() - busy
        found = once()
        ended, ended_busy = time.perf_counter() - began, time.process_time() - busy
        share = found / (ended - made)  # of kaen's whole batches, what all rows would take
        told = {"seconds": made + found, "cpu_seconds": made_busy + (ended_busy - made_busy) * share}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    answer(globals())
