"""Libraries that read a format of their own, or files by themselves: each in an environment of its own.

    python -m tests.benchmarks.stream_peers_candidates NAME [ARGUMENT…]     started by stream_peers.py, not by hand

Rows are kept in items of 2500, which suits these libraries: an item for each row takes them many times as long.
"""

import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROWS, WIDTH = 4_000_000, 9
ITEM, ITEMS_OF_BATCH = 2500, 400  # each shard has a whole number of items
WORKERS = len(os.sched_getaffinity(0))


def read_items(path: str) -> Iterator[Any]:
    """Yield the rows of a shard of CSV, as [2500, columns]."""
    import numpy as np
    import pandas as pd  # type: ignore[import-untyped]

    rows = np.ascontiguousarray(pd.read_csv(path).to_numpy(dtype="float64"))
    yield from (rows[at : at + ITEM] for at in range(0, len(rows), ITEM))


def convert_to_litdata(source: str, target: str) -> None:
    """Write LitData's chunks of 64 MB."""
    import litdata  # type: ignore[import-not-found]

    paths = sorted(map(str, Path(source).glob("part-*.csv")))
    litdata.optimize(fn=read_items, inputs=paths, output_dir=target, chunk_bytes="64MB", num_workers=WORKERS)


def convert_to_mosaic(source: str, target: str) -> None:
    """Write MosaicML's shards, of 4 MiB instead of its 64 MiB.

    Of larger ones the copies on the local disk were not those in the store; why (its fetching in parts, rclone, a numpy
    newer than it allows) was not found out. So its figure is of smaller shards than it would take itself.
    """
    from streaming import MDSWriter  # type: ignore[import-not-found]

    columns = {"rows": f"ndarray:float64:{ITEM},{WIDTH}"}
    with MDSWriter(out=target, columns=columns, size_limit=2**22) as writer:
        for path in sorted(Path(source).glob("part-*.csv")):
            for rows in read_items(str(path)):
                writer.write({"rows": rows})


def pass_over(make: Callable[[str], Any], copies: str) -> Callable[[], float]:
    """Return what goes through all rows once; copies: "fresh", fetched anew each time, or "kept" on local disk."""
    folder = tempfile.mkdtemp(prefix="peer-", dir=os.environ["BENCHMARK_CACHE"])

    def run() -> float:
        if copies == "fresh":
            shutil.rmtree(folder)
            Path(folder).mkdir()
        began = time.perf_counter()
        rows = sum(count_rows(batch) for batch in make(folder))
        assert rows == ROWS, f"{rows} rows read"
        return time.perf_counter() - began

    return run


def count_rows(batch: Any) -> int:
    """How many rows a batch of items, or a table of rows, holds."""
    batch = batch["rows"] if isinstance(batch, dict) else batch
    return len(batch.reshape(-1, WIDTH))


def litdata(copies: str) -> Callable[[], float]:
    """LitData's StreamingDataset, with a worker for each core."""
    import litdata as ld
    from litdata.streaming.resolver import Dir  # type: ignore[import-not-found]

    options = {
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "region_name": os.environ["AWS_DEFAULT_REGION"],
    }

    def make(folder: str) -> Any:
        where = Dir(path=folder, url="s3://taxi/litdata")
        dataset = ld.StreamingDataset(where, storage_options=options, max_cache_size="50GB")
        return ld.StreamingDataLoader(dataset, batch_size=ITEMS_OF_BATCH, num_workers=WORKERS)

    return pass_over(make, copies)


def mosaic(copies: str) -> Callable[[], float]:
    """MosaicML Streaming's StreamingDataset, with a worker for each core."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    os.environ["S3_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL"]

    def make(folder: str) -> Any:
        clean_stale_shared_memory()
        dataset = StreamingDataset(remote="s3://taxi/mosaic", local=folder, batch_size=ITEMS_OF_BATCH, shuffle=False)
        return DataLoader(dataset, batch_size=ITEMS_OF_BATCH, num_workers=WORKERS)

    return pass_over(make, copies)


def s3torchconnector() -> Callable[[], float]:
    """AWS's connector and pandas: whole shards, with a worker for each core; it keeps nothing."""
    import pandas as pd
    import torch
    from s3torchconnector import S3ClientConfig, S3IterableDataset  # type: ignore[import-not-found]
    from torch.utils.data import DataLoader

    def decode(body: Any) -> Any:
        return torch.from_numpy(pd.read_csv(io.BytesIO(body.read())).to_numpy(dtype="float64"))

    def make(_: str) -> Any:
        dataset = S3IterableDataset.from_prefix(
            "s3://taxi/csv/part-",
            region=os.environ["AWS_DEFAULT_REGION"],
            endpoint=os.environ["AWS_ENDPOINT_URL"],
            transform=decode,
            enable_sharding=True,
            s3client_config=S3ClientConfig(force_path_style=True),
        )
        return DataLoader(dataset, batch_size=None, num_workers=WORKERS, multiprocessing_context="fork")

    return pass_over(make, "kept")


def main() -> None:
    name, *arguments = sys.argv[1:]
    found = globals()[name](*arguments)
    if name.startswith("convert"):
        return
    for _ in sys.stdin:
        with open(os.devnull, "w") as silence:  # noqa: PTH123
            seconds, sys.stdout = None, silence
            try:
                seconds = found()
            finally:
                sys.stdout = sys.__stdout__
        print(json.dumps(seconds), flush=True)


if __name__ == "__main__":
    main()
