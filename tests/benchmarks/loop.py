"""The training loop beside plain torch on the same tensors.

    python -m tests.benchmarks.loop

Prints the ratio of the resident loop to a loop of torch alone, measured in turn in one process. It needs what training
needs, and no more; what a record in MLflow costs the loop is measured in record.py.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator

import torch

from tasks.learning.batches import Preparation, Prepared, stay_resident
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.scaling import Scaling
from tests.benchmarks.stream_setting import describe_machine, take_turns

ROWS, BATCH, ITERATIONS, ROUNDS = 2**22, 2**20, 600, 7  # a loop takes longer than metrics wait to be sent
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


def draw_rows() -> torch.Tensor:
    """Return the [rows, 9] table that is learned from: the target, and eight features."""
    return torch.randn(ROWS, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def start(rows: torch.Tensor) -> tuple[Trainer, Iterator[Prepared]]:
    """A new trainer, and batches that stay in memory after their first pass."""
    preparation = Preparation(features=FEATURES, scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    stream = preparation.stream(itertools.cycle(rows.split(BATCH)))
    return Trainer(FEATURES, Scaling.none(8), SETTINGS, CPU), stay_resident(stream, ROWS, 2**40)


def main() -> None:
    """Measure in turn, and print the ratios."""
    rows = draw_rows()
    plain, ours = take_turns([lambda: plain_torch(rows), lambda: our_loop(rows)], ROUNDS)
    for name, times in (("plain torch", plain), ("our loop, resident", ours)):
        print(f"{name:20} {statistics.median(times) * 1000:.2f} ms an iteration (least {min(times) * 1000:.2f})")
    ratios = [mine / theirs for mine, theirs in zip(ours, plain, strict=True)]
    print(f"our loop / plain torch: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    print(f"\n{describe_machine()}; {ROUNDS} rounds")


if __name__ == "__main__":
    main()
