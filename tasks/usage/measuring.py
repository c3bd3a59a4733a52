"""What a run takes, measured in its own process: time, processor, memory, and what was asked of the store."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tasks.errors import TrackingError
from tasks.streaming.objects.traffic import Traffic, read_traffic

SAMPLE_SECONDS = 0.05
OTHERS_SECONDS = 0.5
KEEP_SECONDS = 20.0  # so that of a run that is killed, no more is lost of what it took
STATUS = Path("/proc/self/status")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """What a run has taken, over all its `attempts`.

    cpu_seconds: of the process, and of those on its machine that it started to work for it
    gpu_seconds: for which GPUs were held, one by one
    peak_memory: most bytes that were its own (not those of files) at a time
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    requests: int = 0
    bytes: int = 0
    peak_memory: int = 0
    attempts: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            seconds=self.seconds + other.seconds,
            cpu_seconds=self.cpu_seconds + other.cpu_seconds,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
            requests=self.requests + other.requests,
            bytes=self.bytes + other.bytes,
            peak_memory=max(self.peak_memory, other.peak_memory),
            attempts=self.attempts + other.attempts,
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Usage:
        """Return the usage that plain JSON types were made of by `asdict`."""
        return cls(**plain)


@dataclass(frozen=True, kw_only=True)
class Meters:
    """Where the clocks and counters of this process stand."""

    seconds: float
    cpu_seconds: float
    traffic: Traffic


def read_meters() -> Meters:
    """Read clocks and counters; what a part of the process took is the difference of two readings."""
    return Meters(seconds=time.monotonic(), cpu_seconds=time.process_time(), traffic=read_traffic())


def read_memory() -> int:
    """Return the bytes of memory that are this process's own: neither of files nor shared with other processes."""
    try:
        lines = (line.split() for line in STATUS.read_text().splitlines())
        return sum(1024 * int(line[1]) for line in lines if line[0] in ("RssAnon:", "RssShmem:"))
    except OSError:  # no Linux
        import psutil

        return int(psutil.Process().memory_info().rss)


def read_others() -> Iterator[tuple[int, int, float]]:
    """Yield of each process that this one, or such a one, has started: its number, bytes of its own, CPU seconds."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # it has ended
            memory, times = process.memory_info(), process.cpu_times()
            yield process.pid, int(memory.rss - memory.shared), float(times.user + times.system)


class Meter:
    """Measures what an attempt at a run takes while the `with` block is not left.

    begun: the meters when it began
    gpus: that it holds
    others: whether it starts processes that work for it: they are looked at now and then
    keep: told now and then what was taken so far, and at the end
    """

    def __init__(self, begun: Meters, keep: Callable[[Usage], None], *, gpus: int = 0, others: bool = False) -> None:
        self._begun, self._keep, self._gpus = begun, keep, gpus
        self._holding = time.monotonic()
        self._others = others
        self._cpu_seconds: dict[int, float] = {}  # of those processes, as they were last seen
        self._peak = read_memory()
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._watch_memory, name="shardline-meter", daemon=True)

    def __enter__(self) -> Self:
        self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watch.join()
        with suppress(TrackingError) if error else nullcontext():  # what ends the block is told, and not this
            self._keep(self.read())

    def read(self) -> Usage:
        """Return what was taken so far."""
        now = read_meters()
        traffic = now.traffic - self._begun.traffic
        return Usage(
            seconds=now.seconds - self._begun.seconds,
            cpu_seconds=now.cpu_seconds - self._begun.cpu_seconds + sum(self._cpu_seconds.values()),
            gpu_seconds=self._gpus * (now.seconds - self._holding),
            requests=traffic.requests,
            bytes=traffic.bytes,
            peak_memory=self._peak,
            attempts=1,
        )

    def _look_at_others(self) -> int:
        """Note the CPU seconds of the processes that were started; return their bytes."""
        others = list(read_others())
        self._cpu_seconds |= {number: seconds for number, _, seconds in others}
        return sum(size for _, size, _ in others)

    def _watch_memory(self) -> None:
        kept = time.monotonic()
        while not self._ended.wait(OTHERS_SECONDS if self._others else SAMPLE_SECONDS):
            self._peak = max(self._peak, read_memory() + (self._look_at_others() if self._others else 0))
            if time.monotonic() - kept > KEEP_SECONDS:
                with suppress(TrackingError):  # a disk that is full: whoever writes the record says so
                    self._keep(self.read())
                kept = time.monotonic()
