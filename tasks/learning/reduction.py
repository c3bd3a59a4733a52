"""What is added up over a batch: in slices of a fixed size, in one order, whoever computed them.

A batch's slices follow from its number of rows alone. Each rank sums the rows of its own slices; the slices' sums are
gathered and added in the order of the slices. So every number of ranks, one process included, adds the same numbers in
the same order: curve and weights are equal to the last bit, provided that all processes have the same kind of CPU,
build of torch and number of threads. Other numbers of threads gave the same bits wherever it was tried; other CPUs may
differ in the last bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
import torch.distributed
from torch import Tensor

MOST_SLICES = 840  # which 1 to 8 ranks divide
FEWEST_ROWS = 256  # of a slice: with fewer, adding up the slices' sums is felt
UNDIVIDED = 2048  # rows of a batch up to which the calls cost more than the sums
LANES = 4  # columns: products of an odd number have, with AVX2, last bits that depend on how many slices there are
ALIGNED_ROWS = 16  # as many float32 begin at a 64-byte boundary, whatever the number of columns; bits depend on that


def slice_rows(batch_rows: int) -> int:
    """Return how many rows each slice of a batch of `batch_rows` rows has; the last one may have fewer."""
    if batch_rows <= UNDIVIDED:
        return max(batch_rows, 1)
    fewest = -(-batch_rows // MOST_SLICES)
    return max(FEWEST_ROWS, -(-fewest // ALIGNED_ROWS) * ALIGNED_ROWS)


class Reduction(Protocol):
    """How the parts of a batch that several processes hold become one.

    batch_size: rows of each batch over all processes; None: this one holds them all
    gather_seconds: how long this process has sent its sums and waited for the others'
    """

    batch_size: int | None
    gather_seconds: float

    def gather(self, partial: Tensor) -> Tensor:
        """Return [slices of the batch, …], in their order, from this process's [own slices, …]."""

    def total(self, counts: Tensor) -> Tensor:
        """Return the sum over all processes of whole numbers in int64, which is the same in any order."""


class Alone:
    """One process holds the whole batch: there is nothing to gather."""

    batch_size: int | None = None
    gather_seconds = 0.0

    def gather(self, partial: Tensor) -> Tensor:
        """Return `partial`."""
        return partial

    def total(self, counts: Tensor) -> Tensor:
        """Return `counts`."""
        return counts


ALONE = Alone()


class Ranks:
    """The processes of torch.distributed's default group, each with whole slices of every batch, in one message a sum.

    batch_size: rows of each batch over all ranks; rank r of W holds the slices [r·S/W, (r+1)·S/W) of S, rounded down,
        as a stream does whose `Placement` has `slice_rows(batch_size)`
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size: int | None = batch_size
        self.gather_seconds = 0.0
        size = torch.distributed.get_world_size()
        slices = -(-batch_size // slice_rows(batch_size))
        self._counts = [stop - start for start, stop in pairwise(rank * slices // size for rank in range(size + 1))]

    def gather(self, partial: Tensor) -> Tensor:
        """Return the slices of all ranks, from as many of this one as it is to hold."""
        began = time.perf_counter()
        own = self._counts[torch.distributed.get_rank()]
        assert len(partial) == own, f"this rank summed {len(partial)} slices instead of {own}"
        padded = partial.new_zeros(max(self._counts), *partial.shape[1:])
        padded[:own] = partial
        received = [torch.empty_like(padded) for _ in self._counts]
        torch.distributed.all_gather(received, padded)
        self.gather_seconds += time.perf_counter() - began
        return torch.cat([part[:count] for part, count in zip(received, self._counts, strict=True)])

    def total(self, counts: Tensor) -> Tensor:
        """Return the sum of all ranks' counts."""
        began = time.perf_counter()
        summed = counts.clone()
        torch.distributed.all_reduce(summed)
        self.gather_seconds += time.perf_counter() - began
        return summed


def find_reduction(batch_size: int) -> Reduction:
    """Return that of torch.distributed's ranks, where it is initialised, for batches of so many rows; else ALONE."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Ranks(batch_size)
    return ALONE


def count_rows(part: Tensor, reduction: Reduction) -> int:
    """Return the rows, over all processes, of the batch of which `part` [rows, …] is this one's."""
    return reduction.batch_size or part.size(0)  # len() of a tensor costs as much as adding a small one up


def by_slice(partial: Callable[..., Tensor], *tables: Tensor, reduction: Reduction = ALONE) -> Tensor:
    """Return what `partial` makes of each slice of a batch: [slices, …], on every rank.

    tables: this process's rows of the batch, [rows, columns] each, contiguous
    partial: takes them cut, as [slices, rows, columns] each, and returns [slices, …]; what it makes of one slice may
        not depend on how many there are
    """
    own = tables[0].size(0)
    rows = slice_rows(count_rows(tables[0], reduction))
    whole = own // rows
    cut = whole * rows
    if cut == own:
        return reduction.gather(partial(*[table.view(whole, rows, table.size(1)) for table in tables]))
    last = partial(*[table[cut:].unsqueeze(0) for table in tables])
    if not whole:
        return reduction.gather(last)
    first = partial(*[table[:cut].view(whole, rows, table.size(1)) for table in tables])
    return reduction.gather(torch.cat([first, last]))


def add_up(partial: Callable[..., Tensor], *tables: Tensor, reduction: Reduction = ALONE) -> Tensor:
    """Return the sum over a batch's slices of what `partial` makes of each, in float64: see `by_slice`."""
    return by_slice(partial, *tables, reduction=reduction).double().sum(dim=0)


def gather_rows(table: Tensor, reduction: Reduction = ALONE) -> Tensor:
    """Return all rows of a batch, in their order, on every rank, from this process's [rows, columns]."""
    count, columns = count_rows(table, reduction), table.size(1)
    rows = slice_rows(count)
    whole = torch.nn.functional.pad(table, (0, 0, 0, -len(table) % rows))  # the last slice of a batch may be shorter
    return reduction.gather(whole.view(len(whole) // rows, rows, columns)).view(-1, columns)[:count]


def multiply_columns(x: Tensor) -> Tensor:
    """Return the products [slices, columns, columns] of each two columns of x [slices, rows, columns]."""
    columns = x.size(2)
    whole = torch.nn.functional.pad(x, (0, -columns % LANES))
    return multiply(whole, whole)[:, :columns, :columns]


def multiply(x: Tensor, y: Tensor) -> Tensor:
    """Return the products [slices, m, n] of the columns of x [slices, rows, m] and y [slices, rows, n].

    A single slice would be taken by another routine, with other last bits: it is taken twice. Where n is neither 1 nor
    a multiple of LANES, bits depend on how many slices there are.
    """
    if x.size(0) == 1:
        return torch.bmm(x.transpose(1, 2).expand(2, -1, -1), y.expand(2, -1, -1))[:1]
    return torch.bmm(x.transpose(1, 2), y)
