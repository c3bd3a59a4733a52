"""Batches of columns → batches of features and target on the training device.

Preparation (choosing, deriving, standardising, converting) happens once for each row that is streamed. What fits into
`resident_bytes` stays prepared on the device after its first pass, and later passes take no stream at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from tasks.learning.features import Features
from tasks.learning.scaling import Scaling

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
    """Standardised features x [rows, features] and target y [rows, 1] on the device, and what they cost in seconds."""

    x: Tensor
    y: Tensor
    wait_seconds: float = 0.0
    copy_seconds: float = 0.0
    prepare_seconds: float = 0.0
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
    """How batches of columns become what the model sees."""

    features: Features
    scaling: Scaling
    dtype: torch.dtype
    device: torch.device

    def stream(self, batches: Iterator[Tensor], waited: float = 0.0) -> Iterator[Prepared]:
        """Prepare [rows, columns] batches as they come; `waited` seconds passed before, for the first of them."""
        first = True
        while True:
            began, waited = time.perf_counter() - waited, 0.0
            batch = next(batches, None)
            if batch is None:
                return
            if first:
                self.features.refuse_overflow(batch)
            first = False
            arrived = time.perf_counter()
            x, y = self._choose(batch)
            prepared = Prepared(x, y, arrived - began, 0.0, time.perf_counter() - arrived)
            yield self._copied(prepared) if self.device.type == "cuda" else prepared

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


def stay_resident(prepared: Iterator[Prepared], rows: int, resident_bytes: int) -> Iterator[Prepared]:
    """Yield endless batches over `rows` rows in their fixed order, without the stream once all rows were seen.

    The batches equal the stream's to the last bit. Where the rows take more than `resident_bytes`, or the stream has
    none, it is passed on as it is.
    """
    first = next(prepared, None)
    if first is None:
        return
    needed = rows * (first.x.shape[1] + 1) * first.x.element_size()
    if needed > resident_bytes:
        yield first
        yield from prepared
        return
    x, y = first.x.new_empty(rows, first.x.shape[1]), first.y.new_empty(rows, 1)
    size, at = len(first.x), 0
    with closing(prepared):  # type: ignore[type-var]
        batch: Prepared | None = first
        while batch is not None:
            batch.await_copy()
            new = min(size, rows - at)
            x[at : at + new], y[at : at + new] = batch.x[:new], batch.y[:new]
            yield batch
            at += size
            if at >= rows:
                break
            batch = next(prepared, None)
        else:
            return
    while True:
        began = time.perf_counter()
        batch_x, batch_y = _wrapped(x, at % rows, size), _wrapped(y, at % rows, size)
        yield Prepared(batch_x, batch_y, copy_seconds=time.perf_counter() - began)
        at += size


def _wrapped(table: Tensor, start: int, size: int) -> Tensor:
    """`size` rows of a table from `start`, wrapping at its end; a view where that is bit for bit safe."""
    part = table[start : start + size]
    if len(part) == size:
        return part if part.data_ptr() % ALIGNMENT == 0 else part.clone()
    parts, left = [part], size - len(part)
    while left > 0:
        parts.append(table[:left])
        left -= len(parts[-1])
    return torch.cat(parts)
