"""What a run leaves, kept in a local folder until MLflow has it all; nothing here knows MLflow."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from tasks.errors import TrackingError
from tasks.state import STATE

REGISTRATION = "registration.json"  # in an outbox, like the next two, where there is such a thing to record
INPUTS = "inputs.json"
MODEL = "model"


class MetricRow(NamedTuple):
    """A metric's value at one step, told at `timestamp` (ms since 1970)."""

    key: str
    value: float
    timestamp: int
    step: int


class Outbox:
    """What one run leaves (metrics, files, tags), kept in a local folder until MLflow has it all.

    `metrics.jsonl` (a line an iteration), `artifacts/` (as they will stand in MLflow), `tags.json`, and the model. The
    folder outlives the process, so that a run whose server went away, or that was killed, can be completed later.
    """

    def __init__(self, run_id: str) -> None:
        self.run_id, self.path = run_id, outboxes() / run_id
        (self.path / "artifacts").mkdir(parents=True, exist_ok=True)
        self.rows = read_metrics(self.path)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep one step's metrics."""
        timestamp = time.time_ns() // 1_000_000
        line = json.dumps({"step": step, "timestamp": timestamp, "metrics": dict(metrics)}).encode() + b"\n"
        try:
            if os.write(self._metrics, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise TrackingError(
                f"the record of run {self.run_id} cannot be kept in {self.path}: {error.strerror}; make room there, "
                "then start again: the run goes on from its last checkpoint"
            ) from error
        self.rows.extend(MetricRow(key, float(value), timestamp, step) for key, value in metrics.items())

    @cached_property
    def _metrics(self) -> int:
        """The descriptor that lines are appended by: opened once, since opening takes longer than writing a line."""
        opened = os.open(self.path / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, opened)
        return opened

    def file(self, path: str) -> Path:
        """Return where to write the artifact that will stand at this path in the run."""
        target = self.path / "artifacts" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def tag(self, tags: Mapping[str, str]) -> None:
        """Keep tags for the run."""
        path = self.path / "tags.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**kept, **tags}), encoding="utf-8")


@contextmanager
def held(outbox: Path) -> Iterator[bool]:
    """Hold an outbox for this process while the block runs; yield whether no other process holds it.

    The lock ends with the process, however that ends.
    """
    with (outbox / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def outboxes() -> Path:
    """Return the folder with an outbox for each run whose record is not complete."""
    return (STATE / "outbox").absolute()


def read_metrics(outbox: Path) -> list[MetricRow]:
    """Return the metrics of an outbox; a last line cut short by a kill is cut off."""
    path = outbox / "metrics.jsonl"
    if not path.exists():
        return []
    whole = path.read_bytes().rpartition(b"\n")
    os.truncate(path, len(whole[0]) + len(whole[1]))
    entries = [json.loads(line) for line in whole[0].splitlines()]
    return [
        MetricRow(key, float(value), entry["timestamp"], entry["step"])
        for entry in entries
        for key, value in entry["metrics"].items()
    ]
