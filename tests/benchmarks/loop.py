"""The training loop beside plain torch on the same tensors, and what its record in MLflow costs it.

    python -m tests.benchmarks.loop

Prints the ratio of the resident loop to a loop of torch alone, measured in turn in one process, and what share of the
loop's time its record takes: telling the outbox, in the loop, and sending to a SQLite store, on a thread beside it.
Loops with a record and without differ by less than two loops of one kind do, so the record's own times are added up.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import torch

from tasks.learning.batches import Preparation, Prepared, stay_resident
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.scaling import Scaling
from tasks.tracking import client as record
from tasks.tracking.outbox import Outbox
from tasks.training.gradient import metrics_of
from tests.benchmarks.stream_setting import describe_machine, take_turns

ROWS, BATCH, ITERATIONS, ROUNDS = 2**22, 2**20, 600, 7  # they take longer than metrics wait to be sent
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


def our_loop(rows: torch.Tensor) -> float:
    """Seconds of a resident iteration of our loop, nothing recorded."""
    began, seconds = time.perf_counter(), []
    for iteration in train(*start(rows)):
        now = time.perf_counter()
        if iteration.iteration * BATCH >= ROWS:  # the first pass is streamed
            seconds.append(now - began)
        began = now
    return statistics.fmean(seconds)


def recorded_loop(rows: torch.Tensor) -> tuple[float, float]:
    """What the record takes of a resident loop's time: (shares taken by telling in the loop, by sending beside it)."""
    client, sending = record.connect(), [0.0]
    outbox = Outbox(record.begin(client, experiment="loop", name="loop", parameters={}, tags={}))
    send = record.send_metrics

    def send_timed(*arguments: Any) -> None:
        began = time.thread_time()
        send(*arguments)
        sending[0] += time.thread_time() - began

    telling, began = 0.0, time.perf_counter()
    with patch.object(record, "send_metrics", send_timed), record.sending(client, outbox):
        for iteration in train(*start(rows)):
            told = time.perf_counter()
            outbox.log(iteration.iteration, metrics_of(iteration))
            telling += time.perf_counter() - told
        total = time.perf_counter() - began
    return telling / total, sending[0] / total / len(os.sched_getaffinity(0))


def start(rows: torch.Tensor) -> tuple[Trainer, Iterator[Prepared]]:
    """A new trainer, and batches that stay in memory after their first pass."""
    preparation = Preparation(features=FEATURES, scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    stream = preparation.stream(itertools.cycle(rows.split(BATCH)))
    return Trainer(FEATURES, Scaling.none(8), SETTINGS, CPU), stay_resident(stream, ROWS, 2**40)


def main() -> None:
    """Measure in turn, and print the ratios."""
    rows = torch.randn(ROWS, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        plain, ours = take_turns([lambda: plain_torch(rows), lambda: our_loop(rows)], ROUNDS)
        told = [recorded_loop(rows) for _ in range(ROUNDS)]
        os.chdir("/")
    for name, times in (("plain torch", plain), ("our loop, resident", ours)):
        print(f"{name:20} {statistics.median(times) * 1000:.2f} ms an iteration (least {min(times) * 1000:.2f})")
    ratios = [mine / theirs for mine, theirs in zip(ours, plain, strict=True)]
    print(f"our loop / plain torch: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    for name, shares in zip(("telling, in the loop", "sending, of all cores"), zip(*told, strict=True), strict=True):
        print(f"{name}: {statistics.median(shares):.2%} of the loop's time ({min(shares):.2%} to {max(shares):.2%})")
    print(f"\n{describe_machine()}; {ROUNDS} rounds")


if __name__ == "__main__":
    main()
