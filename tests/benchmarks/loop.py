"""The training loop beside plain torch on the same tensors, and what its record in MLflow costs it.

    python -m tests.benchmarks.loop

Prints ratios measured in turn in one process: the resident loop against a loop of torch alone, and the loop with its
record (outbox, sender thread, SQLite store) against the same loop without. An iteration is the mean over a whole loop,
so that a batch of metrics that is sent counts; every other round goes the other way round.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from tasks.learning import record
from tasks.learning.batches import Preparation, stay_resident
from tasks.learning.features import Features, Scaling
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.outbox import Outbox
from tasks.training import metrics_of

ROWS, BATCH, ITERATIONS, ROUNDS = 2**22, 2**20, 400, 9  # 400 iterations take longer than metrics wait to be sent
SETTINGS = Settings(iterations=ITERATIONS, learning_rate=0.1, gradient_norm=0, seed=0)
FEATURES = Features.choose(["y", *"abcdefgh"])
CPU = torch.device("cpu")


def plain_torch(rows: torch.Tensor) -> float:
    """Seconds of an iteration of the same arithmetic, on tensors that lie ready."""
    parts = [
        (rows[at : at + BATCH, 1:].contiguous(), rows[at : at + BATCH, :1].contiguous()) for at in range(0, ROWS, BATCH)
    ]
    w, b = (
        torch.zeros(8, 1, dtype=torch.float64, requires_grad=True),
        torch.zeros(1, 1, dtype=torch.float64, requires_grad=True),
    )
    optimizer = torch.optim.SGD([w, b], lr=0.1)
    seconds = []
    for _, (x, y) in zip(range(ITERATIONS), itertools.cycle(parts), strict=False):
        began = time.perf_counter()
        loss = torch.nn.functional.mse_loss(x @ w + b, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return statistics.fmean(seconds)


def our_loop(rows: torch.Tensor, recorded: bool) -> float:
    """Seconds of a resident iteration of our loop, with its record or without."""
    trainer = Trainer(FEATURES, Scaling.none(8), SETTINGS, CPU)
    preparation = Preparation(features=FEATURES, scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    stream = itertools.cycle(rows.split(BATCH))
    batches = stay_resident(preparation.stream(stream), ROWS, 2**40)
    client = record.connect() if recorded else None
    outbox = Outbox(record.begin(client, experiment="loop", name="loop", parameters={}, tags={})) if client else None
    seconds, began = [], time.perf_counter()
    with record.sending(client, outbox) if client and outbox else nullcontext():
        for iteration in train(trainer, batches):
            if outbox:
                outbox.log(iteration.iteration, metrics_of(iteration))
            now = time.perf_counter()
            if iteration.iteration * BATCH >= ROWS:  # the first pass is streamed
                seconds.append(now - began)
            began = now
    return statistics.fmean(seconds)


def main() -> None:
    """Measure in turn, and print the ratios."""
    rows = torch.randn(ROWS, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kinds: dict[str, Callable[[], float]] = {
        "plain torch": lambda: plain_torch(rows),
        "our loop, resident, no record": lambda: our_loop(rows, recorded=False),
        "our loop, resident, recorded": lambda: our_loop(rows, recorded=True),
    }
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        turns = [list(kinds.items())[:: -1 if number % 2 else 1] for number in range(ROUNDS)]
        rounds = [{name: measure() for name, measure in turn} for turn in turns]
        os.chdir("/")
    for name in kinds:
        times = [each[name] * 1000 for each in rounds]
        print(f"{name:32} {statistics.median(times):7.2f} ms an iteration ({min(times):.2f} to {max(times):.2f})")
    for above, below in itertools.pairwise(reversed(kinds)):
        ratios = [each[above] / each[below] for each in rounds]
        print(f"{above} / {below}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
