"""What a profile of every column adds to the first pass over shards in S3.

    python -m tests.benchmarks.profile [ROUNDS]

4 million rows in 16 shards, batches of 2**20, rclone on loopback; each pass streams, checks, decodes, takes the moments
and trains, once with a profile and once without, in turn in one process. Times are of this process on all its threads
(`time.process_time`), which holds on a machine that others use too; the server is another process.
Then what one batch's profile takes, by rows and columns.
"""

from __future__ import annotations

import os
import statistics
import sys
import time

import torch

from tasks.learning.batches import Preparation
from tasks.learning.features import Features
from tasks.learning.first_pass import FirstPass
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.profiled import Profiler
from tasks.learning.scaling import Scaling
from tasks.streaming import ObjectStorageDataset, locate
from tests.benchmarks.stream_setting import BATCH, describe_machine, serve_shards, take_turns

CPU = torch.device("cpu")
SHAPES = ((2**20, 2), (2**20, 9), (2**20, 40), (2**14, 9), (1000, 9), (64, 9))  # rows of a batch, columns
VALUES = 2**24  # that a batch's time is measured over


def pass_once(dataset: ObjectStorageDataset, *, profiled: bool) -> float:
    """Return the CPU seconds of a first pass that trains."""
    features = Features.choose(dataset.manifest.columns)
    first_pass = FirstPass(features, dataset.manifest.rows, dataset.batch_size)
    first_pass.profiler = first_pass.profiler if profiled else None
    scaling = Scaling.none(len(features.names))
    preparation = Preparation(
        features=features, scaling=scaling, dtype=torch.float64, device=CPU, first_pass=first_pass
    )
    settings = Settings(iterations=len(dataset), learning_rate=None, gradient_norm=0, seed=None)
    trainer = Trainer(features, scaling, settings, CPU)
    began = time.process_time()
    for _ in train(trainer, preparation.stream(iter(dataset))):
        pass
    seconds = time.process_time() - began
    sums = first_pass.sums()
    assert sums and sums.is_complete and bool(sums.profile) == profiled
    return seconds


def profile_once(batch: torch.Tensor) -> float:
    """Return the CPU seconds that a batch's profile takes, where its edges are known."""
    profiler, turns = Profiler(list(map(str, range(batch.shape[1])))), max(2, VALUES // batch.numel())
    profiler.add(batch)
    began = time.process_time()
    for _ in range(turns):
        profiler.add(batch)
    return (time.process_time() - began) / turns


def main() -> None:
    """Measure in turn, and print the ratios."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 9
    with serve_shards() as environment:
        os.environ.update(environment)
        dataset = ObjectStorageDataset(locate("s3://taxi/csv/part*.csv"), batch_size=BATCH, epochs=1)
        without, profiled = take_turns(
            [lambda: pass_once(dataset, profiled=False), lambda: pass_once(dataset, profiled=True)], rounds
        )
    more = [after / before - 1 for before, after in zip(without, profiled, strict=True)]
    print(
        f"\nA first pass takes {statistics.median(without):.2f} CPU seconds without a profile, "
        f"{statistics.median(profiled):.2f} with one: {statistics.median(more):.1%} more "
        f"({min(more):.1%} to {max(more):.1%}, the least of both {min(profiled) / min(without) - 1:.1%})\n"
    )
    print("| rows of a batch | columns | CPU ms | ns a value |\n|---:|---:|---:|---:|")
    for rows, columns in SHAPES:
        batch = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        seconds = min(profile_once(batch) for _ in range(rounds))
        print(f"| {rows:,} | {columns} | {seconds * 1e3:.3f} | {seconds / batch.numel() * 1e9:.1f} |", flush=True)
    print(f"\n{describe_machine()}; {rounds} rounds")


if __name__ == "__main__":
    main()
