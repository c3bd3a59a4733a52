"""Later passes, from the cache: beside kaen, and in the training loop beside the same loop over tensors in memory.

python -m tests.benchmarks.stream_later_passes [ROUNDS]
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable

import torch

from tests.benchmarks.stream_setting import (
    BATCH,
    HOME,
    ROWS,
    Candidate,
    print_table,
    provide_peers,
    serve_shards,
    take_turns,
)

ITERATIONS = 16


def train(batches: Iterable[torch.Tensor]) -> float:
    """Seconds of the notebook's loop over so many iterations, the first one not counted."""
    w = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w, b], lr=0.03)
    began = 0.0
    for iteration, batch in enumerate(itertools.islice(batches, ITERATIONS + 1)):
        if iteration == 1:
            began = time.perf_counter()
        loss = torch.nn.functional.mse_loss(batch[:, 1:] @ w + b, batch[:, :1])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([w, b], 0.5)
        optimizer.step()
        loss.item()
    return time.perf_counter() - began


def compare_loops(rounds: int, environment: dict[str, str]) -> None:
    from tasks.streaming import ObjectStorageDataset, locate

    os.environ.update(environment)
    manifest = locate("s3://taxi/csv/part-*.csv")
    with tempfile.TemporaryDirectory(dir=HOME) as folder:

        def stream() -> ObjectStorageDataset:
            return ObjectStorageDataset(manifest, batch_size=BATCH, cache=True, cache_dir=folder)

        in_memory = list(itertools.islice(stream(), ROWS // BATCH))
        measured = take_turns([lambda: train(itertools.cycle(in_memory)), lambda: train(stream())], rounds)
    memory, cached = map(statistics.median, measured)
    print(
        f"\nTraining loop, {ITERATIONS} iterations of 2**20 rows: {memory:.3f} s over tensors in memory, "
        f"{cached:.3f} s over the stream from its cache: {cached / memory:.2f} times "
        f"(least of each: {min(measured[1]) / min(measured[0]):.2f})."
    )


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    peers = provide_peers()
    with serve_shards() as environment:
        environment["BENCHMARK_CACHE"] = str(HOME)
        candidates = {
            "ours, from the cache": Candidate("ours", "warm", environment=environment),
            "ours, from S3": Candidate("ours", "off", environment=environment),
            "kaen 1.0.1.31": Candidate("kaen", "fresh", environment=environment, python=peers),
            "kaen, from its copies": Candidate("kaen", "kept", environment=environment, python=peers),
        }
        try:
            measured = take_turns(list(candidates.values()), rounds)
        finally:
            for candidate in candidates.values():
                candidate.close()
        print_table("Later passes", dict(zip(candidates, measured, strict=True)), ROWS, "kaen 1.0.1.31")
        compare_loops(rounds, environment)


if __name__ == "__main__":
    main()
