"""Metrics on their way to MLflow: from an outbox, in batches, while the loop goes on.

Of a long run's iterations some metrics go there one by one only for each so-many-th, and all of them in one file.
"""

from __future__ import annotations

import csv
import io
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.tracking.client import translated
from tasks.tracking.outbox import MetricRow, Outbox, read_metrics

if TYPE_CHECKING:
    from tasks.tracking.client import Client

SEND_EVERY_SECONDS = 5.0
MOST_OF_THE_TIME = 0.01  # that sending may take from the loop
SECONDS_A_ROW = 0.00025  # at first: about what a SQLite store takes
MOST_METRICS_A_BATCH = 1000  # MLflow's own limit for log_batch
KEPT = "metrics/iterations.csv"  # the artifact with all iterations of a run whose metrics are thinned


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
        sender.join(timeout=5)


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
    """Return metrics' values by step, from MLflow, the kept file there and the outbox; TrackingError without MLflow."""
    stored: dict[str, dict[int, float]] = {}
    with translated(f"the history of run {outbox.run_id} cannot be read"):
        for key in keys:
            stored[key] = {metric.step: metric.value for metric in client.get_metric_history(outbox.run_id, key)}
        whole = read_whole(client, outbox.run_id)
    for row in (*whole, *outbox.rows, *read_metrics(outbox.path, part="kept")):
        if row.key in stored:
            stored[row.key][row.step] = row.value
    return {key: dict(sorted(values.items())) for key, values in stored.items()}


def keep_whole(client: Client, run_id: str, outbox: Path) -> None:
    """Put all iterations' metrics into a file of the record, where MLflow gets some of them in it alone.

    Lines that the file in MLflow has already, from before a run went on elsewhere, stay. An iteration is a line: step,
    timestamp (ms since 1970), and a value a metric.
    """
    if not (kept := read_metrics(outbox, part="kept")):
        return
    steps = {row.step for row in kept}
    rows = [*read_whole(client, run_id), *(row for row in read_metrics(outbox) if row.step in steps), *kept]
    lines: dict[int, dict[str, float]] = {}
    for row in rows:
        lines.setdefault(row.step, {"step": row.step, "timestamp": row.timestamp})[row.key] = row.value
    text = io.StringIO()
    writer = csv.DictWriter(text, dict.fromkeys(key for line in lines.values() for key in line), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines[step] for step in sorted(lines))
    Outbox(run_id).keep(KEPT, text.getvalue())


def read_whole(client: Client, run_id: str) -> list[MetricRow]:
    """Return the metrics in a run's file of all iterations; none where it has no such file."""
    if not any(file.path == KEPT for file in client.list_artifacts(run_id, KEPT.rpartition("/")[0])):
        return []
    with tempfile.TemporaryDirectory(prefix="shardline-record-") as folder:
        text = Path(client.download_artifacts(run_id, KEPT, folder)).read_text(encoding="utf-8")
    return [
        MetricRow(key, float(value), int(line["timestamp"]), int(line["step"]))
        for line in csv.DictReader(io.StringIO(text))
        for key, value in line.items()
        if value and key not in ("step", "timestamp")
    ]
