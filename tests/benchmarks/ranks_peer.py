"""LitData under torch's DDP, as one rank of several, in an environment of its own.

    python -m tests.benchmarks.ranks_peer convert SOURCE TARGET             both started by ranks.py, not by hand
    python -m tests.benchmarks.ranks_peer train RANK RANKS FOLDER

A shard is an item, and a chunk of its own: so each rank fetches as many objects as ours do. Nothing is kept of an
earlier pass. There are no worker processes, whose start would be measured: LitData fetches on a thread.
"""

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ITEMS = 2  # of a rank's batch
RATE = 1e-6


def read_item(path: str) -> Any:
    """Return the rows of a shard of CSV, [rows, columns]."""
    import numpy as np
    import pandas as pd  # type: ignore[import-untyped]

    return np.ascontiguousarray(pd.read_csv(path).to_numpy(dtype="float64"))


def convert(source: str, target: str) -> None:
    """Write LitData's chunks, one a shard."""
    import litdata  # type: ignore[import-not-found]

    paths = sorted(map(str, Path(source).glob("part-*.csv")))
    litdata.optimize(fn=read_item, inputs=paths, output_dir=target, chunk_size=1, num_workers=1)


def load(folder: str) -> Iterator[Any]:
    """Yield this rank's batches, [items, rows, columns]."""
    import litdata
    from litdata.streaming.resolver import Dir  # type: ignore[import-not-found]

    options = {
        "endpoint_url": os.environ["AWS_ENDPOINT_URL"],
        "aws_access_key_id": os.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": os.environ["AWS_SECRET_ACCESS_KEY"],
        "region_name": os.environ["AWS_DEFAULT_REGION"],
    }
    where = Dir(path=folder, url="s3://litdata")
    dataset = litdata.StreamingDataset(where, storage_options=options, max_cache_size="5GB")
    return iter(litdata.StreamingDataLoader(dataset, batch_size=ITEMS, num_workers=0))


def start(columns: int) -> Callable[[Any], None]:
    """Return what takes a step on a table [rows, columns], whose first column is the target, with all ranks."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    model = DistributedDataParallel(torch.nn.Linear(columns - 1, 1, dtype=torch.float64))
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def step(table: Any) -> None:
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(table[:, 1:]), table[:, :1]).backward()
        optimizer.step()

    return step


def train(rank: str, ranks: str, folder: str) -> None:
    """Go once through all rows; leave in a file what it took."""
    import torch

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-litdata-{ranks}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=int(rank), world_size=int(ranks))
    rows, waited = 0, 0.0
    start(2)(torch.ones(1, 2, dtype=torch.float64))  # so that all is imported and connected
    step: Callable[[Any], None] | None = None
    with tempfile.TemporaryDirectory() as kept:
        batches = load(kept)
        torch.distributed.barrier()
        began, cpu = time.perf_counter(), time.process_time()
        asked = began
        for batch in batches:
            waited += time.perf_counter() - asked
            table = torch.as_tensor(batch).flatten(0, 1)
            step = step or start(table.shape[1])
            step(table)
            rows += len(table)
            asked = time.perf_counter()
        spent = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - cpu}
    facts = spent | {"rows": rows, "wait_seconds": waited}
    (Path(folder) / f"litdata-{ranks}-{rank}.json").write_text(json.dumps(facts))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    (convert if sys.argv[1] == "convert" else train)(*sys.argv[2:])
