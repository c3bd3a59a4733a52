"""Batches of columns → batches of features and target on the training device.

Preparation (choosing, deriving, standardising, converting) happens on that device, once for each row that is streamed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from tasks.learning.features import Features
from tasks.learning.first_pass import FirstPass
from tasks.learning.scaling import Scaling
from tasks.learning.tables import ALIGNMENT, Table


def never() -> bool:
    """Return False: nothing is known to be ready."""
    return False


def pin_pages(size: int) -> memoryview:
    """Return so many bytes of page-locked memory, from which a GPU copies while the CPU goes on."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy().data


@dataclass(frozen=True)
class Copy:
    """A batch's way to a GPU, copied and prepared on a stream of its own, which may not have ended.

    source: what is copied from, in page-locked memory; it is referred to until then, for who wrote it would reuse it
    """

    began: torch.cuda.Event
    ended: torch.cuda.Event
    source: Tensor

    def seconds(self) -> float:
        """Wait for its end, and return how long it took."""
        self.ended.synchronize()
        return float(self.began.elapsed_time(self.ended)) / 1000


@dataclass(frozen=True)
class Prepared:
    """Standardised features x [rows, features] and target y [rows, 1] on the device, and what they cost in seconds.

    earlier_seconds: how many of the `wait_seconds` had passed before the batch was asked for
    next_is_ready: whether the batch after it can be had without waiting
    table: what it is a part of, where that has all batches to come
    """

    x: Tensor
    y: Tensor
    wait_seconds: float = 0.0
    copy_seconds: float = 0.0
    earlier_seconds: float = 0.0
    next_is_ready: bool = False
    copy: Copy | None = None
    table: Table | None = None

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

    @property
    def row_bytes(self) -> int:
        """How many bytes a prepared row takes."""
        return (len(self.features.names) + 1) * self.dtype.itemsize

    def stream(
        self, batches: Iterator[Tensor], waited: float = 0.0, is_ready: Callable[[], bool] = never
    ) -> Iterator[Prepared]:
        """Prepare [rows, columns] batches as they come; `waited` seconds passed before, for the first of them.

        is_ready: whether the next one can be had without waiting
        """
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
            x, y, copy = self._prepare(batch)
            yield Prepared(
                x,
                y,
                wait_seconds=arrived - began + earlier,
                earlier_seconds=earlier,
                next_is_ready=is_ready(),
                copy=copy,
            )
            first, earlier = False, 0.0

    def _prepare(self, batch: Tensor) -> tuple[Tensor, Tensor, Copy | None]:
        """Return features and target on the device; on a GPU, sent on their way there beside the step before."""
        if self.device.type != "cuda":
            return *self._choose(batch), None
        source = batch.pin_memory()  # the batch itself, where the stream has read it into such memory
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._copier):
            began.record(self._copier)
            x, y = self._choose(source.to(self.device, non_blocking=True))
            ended.record(self._copier)
        return x, y, Copy(began, ended, source)

    def _choose(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and target in tensors of their own, whose alignment does not depend on the batch's."""
        x = self._scaling.apply(self.features.of(batch)).to(self.dtype)
        x = x.clone(memory_format=torch.contiguous_format) if x.data_ptr() % ALIGNMENT or not x.is_contiguous() else x
        return x, self.features.target_of(batch).to(self.dtype).clone(memory_format=torch.contiguous_format)

    @cached_property
    def _scaling(self) -> Scaling:
        return self.scaling.to(self.device)

    @cached_property
    def _copier(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
