"""Metrics on their way to MLflow: from an outbox, in batches, while the loop goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tasks.tracking.client import translated
from tasks.tracking.outbox import MetricRow, Outbox

if TYPE_CHECKING:
    from tasks.tracking.client import Client

SEND_EVERY_SECONDS = 5.0
MOST_OF_THE_TIME = 0.01  # that sending may take from the loop
SECONDS_A_ROW = 0.00025  # at first: about what a SQLite store takes
MOST_METRICS_A_BATCH = 1000  # MLflow's own limit for log_batch


@contextmanager
def sending_in_background(client: Client, outbox: Outbox) -> Iterator[None]:
    """Send the outbox's metrics to MLflow from a thread while the block runs; what fails to go stays in the outbox.

    No more of them are sent than take a hundredth of the time; what a fast loop tells beyond that waits for its end.
    """
    stop = threading.Event()

    def send() -> None:
        sent = 0
        ended = time.monotonic()
        seconds_a_row = SECONDS_A_ROW
        while not stop.wait(0.2):
            began = time.monotonic()
            if began - ended < SEND_EVERY_SECONDS or sent == len(outbox.rows):
                continue
            affordable = max(1, int((began - ended) * MOST_OF_THE_TIME / seconds_a_row))
            part = outbox.rows[sent : sent + min(affordable, MOST_METRICS_A_BATCH)]
            with suppress(Exception):  # sent again next time, or at the end
                send_metrics(client, outbox.run_id, part)
                sent += len(part)
            ended = time.monotonic()
            seconds_a_row = (ended - began) / len(part)

    sender = threading.Thread(target=send, name="mlflow-sender", daemon=True)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join(timeout=30)


def send_metrics(client: Client, run_id: str, rows: Sequence[MetricRow]) -> None:
    """Log rows in batches; identical rows are stored once, so sending them again is safe."""
    from mlflow.entities import Metric

    for at in range(0, len(rows), MOST_METRICS_A_BATCH):
        client.log_batch(run_id, metrics=[Metric(*row) for row in rows[at : at + MOST_METRICS_A_BATCH]])


def find_missing(client: Client, run_id: str, rows: Sequence[MetricRow]) -> list[MetricRow]:
    """Return the rows whose metric has no value at their step yet: each has one, however often a step was repeated."""
    stored = {
        (metric.key, metric.step)
        for key in {row.key for row in rows}
        for metric in client.get_metric_history(run_id, key)
    }
    return [row for row in rows if (row.key, row.step) not in stored]


def read_histories(client: Client, outbox: Outbox, keys: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return metrics' values by step, from MLflow and the outbox; raise TrackingError where MLflow is away."""
    stored: dict[str, dict[int, float]] = {}
    with translated(f"the history of run {outbox.run_id} cannot be read"):
        for key in keys:
            stored[key] = {metric.step: metric.value for metric in client.get_metric_history(outbox.run_id, key)}
    for row in outbox.rows:
        if row.key in stored:
            stored[row.key][row.step] = row.value
    return {key: dict(sorted(values.items())) for key, values in stored.items()}
