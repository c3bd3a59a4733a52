"""The training loop beside torch's autograd on the same tensors, by rows of a batch and number of threads.

    python -m tests.benchmarks.loop

Prints the time of an iteration of both, the loop with data that is resident, and their ratio: of the CPU time of the
process, which holds on a machine that others use too, and of the time that passed. Both are measured in turn in one
process. It needs what training needs, and no more; what a record in MLflow costs the loop is measured in record.py.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator

import torch

from tasks.learning.batches import Preparation, Prepared
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.residency import stay_resident
from tasks.learning.scaling import Scaling
from tests.benchmarks.stream_setting import describe_machine, take_turns

ROWS, BATCH, ROUNDS, BATCHES = 2**22, 2**20, 9, 4
ITERATIONS = 600  # a loop takes longer than metrics wait to be sent
TURNS = {64: 1000, 1000: 1000, 2**14: 200, 2**20: 8}  # iterations measured at a time, by rows of a batch
FEATURES = Features.choose(["y", *"abcdefgh"])
CPU = torch.device("cpu")


def run_autograd(rows: torch.Tensor, batch_rows: int, iterations: int) -> tuple[float, float]:
    """Return the seconds of an iteration, of CPU time and of time that passed, of the step that learning had before."""
    parts = [(part[:, 1:].contiguous(), part[:, :1].contiguous()) for part in rows.split(batch_rows)]
    w = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
    b = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w, b], lr=0.1)
    cpu, began = time.process_time(), time.perf_counter()
    for _, (x, y) in zip(range(iterations), itertools.cycle(parts), strict=False):
        loss = torch.nn.functional.mse_loss(x @ w + b, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    return (time.process_time() - cpu) / iterations, (time.perf_counter() - began) / iterations


def run_loop(rows: torch.Tensor, batch_rows: int, iterations: int, learning_rate: float | None) -> tuple[float, float]:
    """Return the same for our loop over resident data; without a learning rate, its steps are preconditioned."""
    loop = train(*start(rows, batch_rows, iterations + BATCHES, learning_rate))
    for _ in range(BATCHES):  # the first pass is streamed
        next(loop)
    cpu, began = time.process_time(), time.perf_counter()
    for _ in loop:
        pass
    return (time.process_time() - cpu) / iterations, (time.perf_counter() - began) / iterations


def draw_rows() -> torch.Tensor:
    """Return the [rows, 9] table that is learned from: the target, and eight features."""
    return torch.randn(ROWS, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def start(
    rows: torch.Tensor, batch_rows: int = BATCH, iterations: int = ITERATIONS, learning_rate: float | None = 0.1
) -> tuple[Trainer, Iterator[Prepared]]:
    """Return a new trainer, and batches that stay in memory after their first pass."""
    settings = Settings(iterations=iterations, learning_rate=learning_rate, gradient_norm=0, seed=0)
    preparation = Preparation(features=FEATURES, scaling=Scaling.none(8), dtype=torch.float64, device=CPU)
    stream = preparation.stream(itertools.cycle(rows.split(batch_rows)))
    return Trainer(FEATURES, Scaling.none(8), settings, CPU), stay_resident(stream, len(rows), 2**40)


def compare(rows: torch.Tensor, batch_rows: int, threads: int) -> str:
    """Return a line of the table: autograd's microseconds, then our loop's ratios to it."""
    torch.set_num_threads(threads)
    given = rows[: BATCHES * batch_rows], batch_rows, TURNS[batch_rows]
    before, plain, preconditioned = take_turns(
        [lambda: run_autograd(*given), lambda: run_loop(*given, 0.1), lambda: run_loop(*given, None)], ROUNDS
    )
    cells = []
    for clock in range(2):
        base = statistics.median(times[clock] for times in before)
        cells.append(f"{base * 1e6:,.0f}")
        for ours in (plain, preconditioned):
            ratios = [mine[clock] / theirs[clock] for mine, theirs in zip(ours, before, strict=True)]
            cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {batch_rows:,} | {threads} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure in turn, and print the ratios."""
    rows = draw_rows()
    clocks = [f"autograd, µs {clock} | our loop | preconditioned" for clock in ("of CPU time", "passed")]
    print(f"| rows | threads | {' | '.join(clocks)} |\n|---:|---:|" + "---:|" * 6)
    for threads in (1, 2):
        for batch_rows in TURNS:
            print(compare(rows, batch_rows, threads), flush=True)
    print(f"\n{describe_machine()}; {ROUNDS} rounds")


if __name__ == "__main__":
    main()
