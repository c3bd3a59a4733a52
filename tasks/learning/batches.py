"""Batches of columns → batches of features and target on the training device.

Preparation (choosing, deriving, standardising, converting) happens once for each row that is streamed. What fits into
`resident_bytes` stays prepared on the device after its first pass, and later passes take no stream at all.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tasks.learning.features import Features
from tasks.learning.first_pass import FirstPass
from tasks.learning.scaling import Scaling

logger = logging.getLogger(__name__)

ALIGNMENT = 64  # bytes; torch's own on CPU. Sums of a slice that begins elsewhere differ in their last bits


@dataclass(frozen=True)
class Copy:
    """A copy to a GPU that may still run, on a stream of its own; what it reads from is kept until it has ended."""

    began: torch.cuda.Event
    ended: torch.cuda.Event
    source: tuple[Tensor, ...]

    def seconds(self) -> float:
        """Wait for its end, and return how long it took."""
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1000


@dataclass(frozen=True)
class Prepared:
    """Standardised features x [rows, features] and target y [rows, 1] on the device, and what they cost in seconds.

    earlier_seconds: how many of the `wait_seconds` had passed before the batch was asked for
    next_is_ready: whether the batch after it can be had without waiting
    """

    x: Tensor
    y: Tensor
    wait_seconds: float = 0.0
    copy_seconds: float = 0.0
    earlier_seconds: float = 0.0
    next_is_ready: bool = False
    copy: Copy | None = None

    def await_copy(self) -> None:
        """Let what is launched on the GPU from here on wait for the copy; the CPU does not."""
        if self.copy is not None:
            current = torch.cuda.current_stream(self.x.device)
            current.wait_event(self.copy.ended)
            self.x.record_stream(current)
            self.y.record_stream(current)


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How batches of columns become what the model sees; `first_pass` sees them on their way."""

    features: Features
    scaling: Scaling
    dtype: torch.dtype
    device: torch.device
    first_pass: FirstPass | None = None

    def stream(self, batches: Iterator[Tensor], waited: float = 0.0) -> Iterator[Prepared]:
        """Prepare [rows, columns] batches as they come; `waited` seconds passed before, for the first of them."""
        first, earlier = True, waited
        while True:
            began = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if first and len(batch):
                self.features.refuse_overflow(batch)
            arrived = time.perf_counter()
            if self.first_pass:
                self.first_pass.take(batch)
            x, y = self._choose(batch)
            prepared = Prepared(
                x,
                y,
                wait_seconds=arrived - began + earlier,
                earlier_seconds=earlier,
            )
            yield self._copied(prepared) if self.device.type == "cuda" else prepared
            first, earlier = False, 0.0

    def _choose(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and target in tensors of their own, whose alignment does not depend on the batch's."""
        x = self.scaling.apply(self.features.of(batch)).to(self.dtype)
        x = x.clone(memory_format=torch.contiguous_format) if x.data_ptr() % ALIGNMENT or not x.is_contiguous() else x
        return x, self.features.target_of(batch).to(self.dtype).clone(memory_format=torch.contiguous_format)

    def _copied(self, batch: Prepared) -> Prepared:
        """Send the batch on its way to the GPU: pinned, and copied on a stream of its own, beside the step before."""
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        source = batch.x.pin_memory(), batch.y.pin_memory()
        with torch.cuda.stream(self._copier):
            began.record(self._copier)
            x, y = (values.to(self.device, non_blocking=True) for values in source)
            ended.record(self._copier)
        return replace(batch, x=x, y=y, copy=Copy(began, ended, source))

    @cached_property
    def _copier(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]


def stay_resident(
    prepared: Iterator[Prepared], rows: int, resident_bytes: int, *, batch_rows: int | None = None
) -> Iterator[Prepared]:
    """Yield the endless stream's batches over `rows` rows in fixed order, without the stream once all rows were seen.

    batch_rows: rows of a batch over all ranks, of which this one streams the same part of each; None: it has them all

    The batches equal the stream's to the last bit. Where the rows that this rank ever sees take more than
    `resident_bytes`, or more than the device has, or the stream has none, it is passed on as it is.
    """
    first = next(prepared, None)
    if first is None:
        return
    table = Table(first, rows, batch_rows or len(first.x))
    if table.bytes > resident_bytes or not table.allocate():
        yield first
        yield from prepared
        return
    iteration = 0
    with closing(prepared):  # type: ignore[type-var]
        batch: Prepared | None = first
        while batch is not None:
            batch.await_copy()
            began = time.perf_counter()
            table.keep(iteration, batch)
            yield replace(batch, copy_seconds=time.perf_counter() - began, next_is_ready=table.is_full)
            iteration += 1
            if table.is_full:
                break
            batch = next(prepared, None)
        else:
            return
    while True:
        began = time.perf_counter()
        x, y = table.take(iteration)
        yield Prepared(x, y, copy_seconds=time.perf_counter() - began, next_is_ready=True)
        iteration += 1


class Table:
    """The prepared rows that one rank ever sees of `rows` rows which are gone through in batches, again and again.

    A rank sees the same part of every batch. Batches begin at multiples of the greatest common divisor of their rows
    and all rows: parts that are no longer than that never overlap, and are kept one by one; else all rows are kept.
    """

    def __init__(self, first: Prepared, rows: int, batch_rows: int) -> None:
        self._first, self._size = first, len(first.x)
        self._row_bytes = (first.x.shape[1] + 1) * first.x.element_size()
        self._rows, self._batch_rows = rows, batch_rows
        self._between = math.gcd(rows, batch_rows)
        self._apart = self._size <= self._between
        self._length = rows // self._between * self._size if self._apart else rows
        self._streamed = 0

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        return self._length * self._row_bytes

    def allocate(self) -> bool:
        """Take the memory, and return whether it was to be had; where it was not, a warning says so."""
        first = self._first
        del self._first
        try:
            self._x, self._y = (first.x.new_empty(self._length, part.shape[1]) for part in (first.x, first.y))
            self._seen = torch.zeros(self._length, 1, dtype=torch.bool)
        except RuntimeError as error:  # of which torch.OutOfMemoryError is one; the CPU's allocator raises no other
            logger.warning(
                "The prepared data, %.3g GiB, do not stay on %s as they were to: %s; they are streamed again and again",
                self.bytes / 2**30, first.x.device, str(error).partition("\n")[0],
            )  # fmt: skip
            return False
        return True

    @property
    def is_full(self) -> bool:
        """Whether each of its rows was kept, and on the other ranks each of theirs may be: none leaves the first pass
        before all rows went by, though it has few of them, or none.
        """
        return self._streamed * self._batch_rows >= self._rows and bool(self._seen.all())

    def keep(self, iteration: int, batch: Prepared) -> None:
        """Put a batch in; iterations count from the first one that was streamed."""
        self._streamed = iteration + 1
        start = self._start_of(iteration)
        _put(self._x, start, batch.x)
        _put(self._y, start, batch.y)
        _put(self._seen, start, torch.ones(self._size, 1, dtype=torch.bool))

    def take(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Return a batch's features and target."""
        start = self._start_of(iteration)
        return _wrapped(self._x, start, self._size), _wrapped(self._y, start, self._size)

    def _start_of(self, iteration: int) -> int:
        at = iteration * self._batch_rows % self._rows
        return at // self._between * self._size if self._apart else at


def _put(table: Tensor, start: int, values: Tensor) -> None:
    """Copy the first values into a table from row `start` on, going on at its beginning behind its end."""
    values = values[: len(table)]
    until_end = values[: len(table) - start]
    table[start : start + len(until_end)] = until_end
    table[: len(values) - len(until_end)] = values[len(until_end) :]


def _wrapped(table: Tensor, start: int, size: int) -> Tensor:
    """`size` rows of a table from `start`, wrapping at its end; a view where that is bit for bit safe."""
    part = table[start : start + size]
    if part.size(0) == size:
        return part if part.data_ptr() % ALIGNMENT == 0 else part.clone()
    parts, left = [part], size - len(part)
    while left > 0:
        parts.append(table[:left])
        left -= len(parts[-1])
    return torch.cat(parts)
