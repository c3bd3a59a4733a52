"""Data that are streamed once: what fits into a device's memory stays there prepared, or in the host's as it is read.

The batches equal the stream's to the last bit.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import torch
from torch import Tensor

from tasks.learning.batches import Prepared, never
from tasks.learning.tables import Table


def stay_resident(
    prepared: Iterator[Prepared], rows: int, resident_bytes: int, *, batch_rows: int | None = None
) -> Iterator[Prepared]:
    """Yield the endless stream's batches over `rows` rows in fixed order, without the stream once all rows were seen.

    batch_rows: rows of a batch over all ranks, of which this one streams the same part of each; None: it has them all

    Where the rows that this rank ever sees take more than `resident_bytes`, or more than the device has, or the stream
    has none, it is passed on as it is.
    """
    first = next(prepared, None)
    if first is None:
        return
    table = Table((first.x, first.y), rows, batch_rows or len(first.x))
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
            table.keep(iteration, (batch.x, batch.y))
            is_ready = table.is_full or batch.next_is_ready
            yield replace(batch, copy_seconds=time.perf_counter() - began, next_is_ready=is_ready)
            iteration += 1
            if table.is_full:
                break
            batch = next(prepared, None)
        else:
            return
    while True:
        began = time.perf_counter()
        x, y = table.take(iteration)
        yield Prepared(x, y, copy_seconds=time.perf_counter() - began, next_is_ready=True, table=table)
        iteration += 1


class InMemory:
    """Batches as the stream reads them, [rows, columns], from the host's memory once all `rows` rows were seen.

    It is page-locked where there is a CUDA device: of later passes only the copy to it is left. Where the rows take
    more than `most_bytes`, or more than there is, the stream is passed on as it is.

    batch_rows: as for `stay_resident`
    is_ready: whether the stream's next batch can be had without waiting
    """

    def __init__(
        self,
        batches: Iterator[Tensor],
        rows: int,
        most_bytes: int,
        *,
        batch_rows: int | None = None,
        is_ready: Callable[[], bool] = never,
    ) -> None:
        self._batches: Iterator[Tensor] | None = batches
        self._rows, self._most_bytes, self._batch_rows = rows, most_bytes, batch_rows
        self._is_ready = is_ready

    def is_ready(self) -> bool:
        """Return whether the next batch can be had without waiting."""
        return self._batches is None or self._is_ready()

    def __iter__(self) -> Iterator[Tensor]:
        assert self._batches is not None, "it is gone through once"
        first = next(self._batches, None)
        if first is None:
            return
        table = Table((first,), self._rows, self._batch_rows or len(first), pinned=torch.cuda.is_available())
        if table.bytes > self._most_bytes or not table.allocate():
            yield first
            yield from self._batches
            return
        batches = itertools.chain([first], self._batches)
        del first
        for iteration, batch in enumerate(batches):
            table.keep(iteration, (batch,))
            if table.is_full:
                self._batches = None
            yield batch
            if table.is_full:
                break
        else:
            return
        del batches, batch  # with which the stream ends
        for later in itertools.count(iteration + 1):
            yield table.take(later)[0]
