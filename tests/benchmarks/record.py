"""What a record in MLflow costs the training loop.

    python -m tests.benchmarks.record

Prints what share of the loop's time its record takes: telling the outbox, in the loop, and sending to a SQLite store,
on a thread beside it. Loops with a record and without differ by less than two loops of one kind do, so the record's own
times are added up.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from typing import Any
from unittest.mock import patch

import torch

from tasks.learning.loop import train
from tasks.tracking import client as record
from tasks.tracking import sending
from tasks.tracking.outbox import Outbox
from tasks.training.telling import name_metrics
from tests.benchmarks.loop import ROUNDS, draw_rows, start
from tests.benchmarks.stream_setting import describe_machine


def recorded_loop(rows: torch.Tensor) -> tuple[float, float]:
    """What the record takes of a resident loop's time: (shares taken by telling in the loop, by sending beside it)."""
    client, seconds = record.connect(), [0.0]
    outbox = Outbox(record.begin(client, experiment="loop", name="loop", parameters={}, tags={}))
    send = sending.send_metrics

    def send_timed(*arguments: Any) -> None:
        began = time.thread_time()
        send(*arguments)
        seconds[0] += time.thread_time() - began

    telling, began = 0.0, time.perf_counter()
    with patch.object(sending, "send_metrics", send_timed), sending.sending_in_background(client, outbox):
        for iteration in train(*start(rows)):
            told = time.perf_counter()
            outbox.log(iteration.iteration, name_metrics(iteration))
            telling += time.perf_counter() - told
        total = time.perf_counter() - began
    return telling / total, seconds[0] / total / len(os.sched_getaffinity(0))


def main() -> None:
    """Measure, and print the shares."""
    rows = draw_rows()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        told = [recorded_loop(rows) for _ in range(ROUNDS)]
        os.chdir("/")
    for name, shares in zip(("telling, in the loop", "sending, of all cores"), zip(*told, strict=True), strict=True):
        print(f"{name}: {statistics.median(shares):.2%} of the loop's time ({min(shares):.2%} to {max(shares):.2%})")
    print(f"\n{describe_machine()}; {ROUNDS} rounds")


if __name__ == "__main__":
    main()
