"""What a run leaves, kept in a local folder until MLflow has it all; nothing here knows MLflow."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import orjson

from tasks.errors import TrackingError
from tasks.files import write_whole
from tasks.redaction import redact_all, redact_text
from tasks.state import STATE

REGISTRATION = "registration.json"  # in an outbox, like the next ones, where there is such a thing to record
INPUTS = "inputs.json"
TAGS = "tags.json"
STATUS = "status"
METRICS = "metrics.jsonl"
MODEL = "model"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

logger = logging.getLogger(__name__)
Kind = TypeVar("Kind")


class MetricRow(NamedTuple):
    """A metric's value at one step, told at `timestamp` (ms since 1970)."""

    key: str
    value: float
    timestamp: int
    step: int


class Outbox:
    """What one run leaves (metrics, files, tags), kept in a local folder until MLflow has it all.

    `metrics.jsonl` (a line an iteration), `artifacts/` (as they will stand in MLflow), `tags.json`, and the model. The
    folder outlives the process, so that a run whose server went away, or that was killed, can be completed later. All
    files but `metrics.jsonl`, which lines are appended to, are there whole or not at all.

    rows: the metrics that MLflow gets one by one; what it gets in the file KEPT (`.sending`) alone is in the lines
    """

    def __init__(self, run_id: str) -> None:
        self.run_id, self.path = run_id, outboxes() / run_id
        with keeping(self.path):
            (self.path / "artifacts").mkdir(parents=True, exist_ok=True)
        self.rows = read_metrics(self.path)

    def log(self, step: int, metrics: dict[str, float], kept: dict[str, float] | None = None) -> None:
        """Keep one step's metrics, and those that MLflow gets in a file alone."""
        timestamp = time.time_ns() // 1_000_000
        entry = {"step": step, "timestamp": timestamp, "metrics": metrics} | ({"kept": kept} if kept else {})
        line = _write_line(entry)
        with keeping(self.path):
            if os.write(self._metrics, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.rows.extend([MetricRow(key, float(value), timestamp, step) for key, value in metrics.items()])

    @cached_property
    def _metrics(self) -> int:
        """The descriptor that lines are appended by: opened once, since opening takes longer than writing a line."""
        opened = os.open(self.path / METRICS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        weakref.finalize(self, os.close, opened)
        return opened

    def keep(self, path: str, content: str | bytes) -> None:
        """Keep the artifact that will stand at this path in the run."""
        target = self.path / "artifacts" / path
        with keeping(self.path):
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, redact_text(content) if isinstance(content, str) else content)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Keep tags for the run."""
        kept = read_part(self.path, TAGS, dict) or {}
        write_part(self.path, TAGS, json.dumps({**kept, **redact_all(tags)}))


@contextmanager
def keeping(outbox: Path) -> Iterator[None]:
    """Raise TrackingError, which says what to do, where the block cannot write to an outbox or read from it."""
    try:
        yield
    except OSError as error:
        remedy = "make room there" if error.errno in FULL else "see to that disk"
        raise TrackingError(
            f"the record of run {outbox.name} cannot be kept in {outbox}: {error.strerror or error}; {remedy}, "
            "then start again: the run goes on from its last checkpoint"
        ) from error


def write_part(outbox: Path, name: str, text: str) -> None:
    """Write one of an outbox's own files, whole or not at all; TrackingError where it cannot be."""
    with keeping(outbox):
        write_whole(outbox / name, text)


def read_part(outbox: Path, name: str, kind: type[Kind]) -> Kind | None:
    """Return what one of an outbox's JSON files holds; None where it is not there, or is broken and now set aside."""
    path = outbox / name
    with keeping(outbox):
        if not path.exists():
            return None
        data = path.read_bytes()
    try:
        found = json.loads(data)
    except ValueError:
        found = None
    if isinstance(found, kind):
        return found
    set_aside(path)
    return None


def set_aside(path: Path) -> None:
    """Move a broken file of an outbox out of it, and warn; TrackingError where it cannot be moved."""
    outbox = path.parent
    target = outbox.parent.with_name("broken") / f"{outbox.name}-{path.name}"
    with keeping(outbox):
        size = path.stat().st_size
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    logger.warning(
        "%s is broken (%d bytes), perhaps since a disk was full: it is set aside as %s, and the record of run %s goes "
        "on without it",
        path,
        size,
        target,
        outbox.name,
    )


@contextmanager
def held(outbox: Path) -> Iterator[bool]:
    """Hold an outbox for this process while the block runs; yield whether no other process holds it.

    The lock ends with the process, however that ends.
    """
    with keeping(outbox):
        lock = (outbox / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def outboxes() -> Path:
    """Return the folder with an outbox for each run whose record is not complete."""
    return (STATE / "outbox").absolute()


def read_metrics(outbox: Path, part: str = "metrics") -> list[MetricRow]:
    """Return the metrics of an outbox, or those of another part of its lines.

    A last line cut short by a kill is cut off; a file with any other line that cannot be read is set aside, and what
    could be read stays.
    """
    path = outbox / METRICS
    with keeping(outbox):
        if not path.exists():
            return []
        whole = path.read_bytes().rpartition(b"\n")
        if whole[2]:
            os.truncate(path, len(whole[0]) + len(whole[1]))
    lines = whole[0].splitlines()
    entries = [entry for entry in map(_read_line, lines) if entry]
    if len(entries) < len(lines):
        set_aside(path)
        write_part(outbox, METRICS, b"".join(map(_write_line, entries)).decode())
    return [
        MetricRow(key, float(value), entry["timestamp"], entry["step"])
        for entry in entries
        for key, value in entry.get(part, {}).items()
    ]


def _write_line(entry: dict[str, Any]) -> bytes:
    """Return an entry as a line, by orjson: in every iteration it takes a tenth of what json does."""
    line = orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in line:  # for what is not finite, which json writes and reads
        return json.dumps(entry).encode() + b"\n"
    return line


def _read_line(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line) if b"N" in line or b"I" in line else orjson.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) and {"step", "timestamp", "metrics"} <= entry.keys() else None
