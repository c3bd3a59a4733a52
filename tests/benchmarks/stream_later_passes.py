"""Later passes, from the cache: beside kaen, and in the training loop beside the same loop over tensors in memory.

python -m tests.benchmarks.stream_later_passes [ROUNDS]
"""

import itertools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch

from tasks.learning.batches import Preparation
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.scaling import Scaling
from tasks.streaming import CacheSettings, ObjectStorageDataset, locate
from tests.benchmarks.stream_setting import (
    BATCH,
    HOME,
    ROWS,
    Candidate,
    print_table,
    provide_peers,
    run_in_turns,
    serve_shards,
    take_turns,
)

ITERATIONS = 50  # as many as the default preset trains; the first pass checks the files


def train_as_the_notebook(batches: Iterable[torch.Tensor]) -> float:
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


def train_as_the_flow(batches: Iterable[torch.Tensor], columns: Sequence[str]) -> float:
    """Seconds of the flow's loop with the default preset (standardised, distance derived), nothing kept resident."""
    features, cpu = Features.choose(columns, derive=["distance_km"]), torch.device("cpu")
    batches = iter(batches)
    first = next(batches)
    settings = Settings(iterations=ITERATIONS, learning_rate=0.1, gradient_norm=0, seed=0)
    trainer = Trainer(features, Scaling.of(features.of(first), {}), settings, cpu)
    prepared = Preparation(features=features, scaling=trainer.scaling, dtype=torch.float64, device=cpu)
    began = time.perf_counter()
    for _ in train(trainer, prepared.stream(batches)):
        pass
    return time.perf_counter() - began


def compare_loops(rounds: int, environment: dict[str, str]) -> None:
    """Print what each loop takes over the cached stream, against tensors in memory."""
    os.environ.update(environment)
    manifest = locate("s3://taxi/csv/part-*.csv")
    loops = {
        "the notebook's": train_as_the_notebook,
        "the flow's, default preset": lambda batches: train_as_the_flow(batches, manifest.columns),
    }
    print(f"\n| training loop, {ITERATIONS} iterations | in memory, s | from the cache, s | ratio | of least |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory(dir=HOME) as folder:

        def stream() -> ObjectStorageDataset:
            return ObjectStorageDataset.from_manifest(manifest, batch_size=BATCH, cache=CacheSettings(folder=folder))

        def train_on_stream(loop: Callable[[Iterable[torch.Tensor]], float]) -> float:
            return loop(stream())

        in_memory = list(itertools.islice(stream(), ROWS // BATCH))
        for name, loop in loops.items():
            kinds = [partial(loop, itertools.cycle(in_memory)), partial(train_on_stream, loop)]
            memory, cached = take_turns(kinds, rounds)
            print(
                f"| {name} | {statistics.median(memory):.3f} | {statistics.median(cached):.3f} | "
                f"{statistics.median(cached) / statistics.median(memory):.2f} | {min(cached) / min(memory):.2f} |"
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
        measured = run_in_turns(list(candidates.values()), rounds)
        print_table("Later passes", dict(zip(candidates, measured, strict=True)), ROWS, "kaen 1.0.1.31")
        compare_loops(rounds, environment)


if __name__ == "__main__":
    main()
