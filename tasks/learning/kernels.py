"""Sums over a batch on a GPU from one read of it, by Triton: torch reads it twice, and launches ten operations.

They are the sums of the one reduction: each program sums a slice, in an order of its own, so that they depend neither
on the card nor on how many programs it runs at a time. A batch is rows of a table, from any row on, that go on at its
beginning: nothing is copied together. Without Triton, or without a C compiler for its launcher, torch's sums are taken.
"""

from __future__ import annotations

import logging
from functools import cache

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without it
    triton = None

BLOCK = 64  # rows that a program has in hand at a time
WARPS = 4

if triton is not None:

    @triton.jit(do_not_specialize=["rows", "size", "slice_rows"])  # type: ignore[untyped-decorator]
    def _sum_slice(  # type: ignore[no-untyped-def]
        x,
        y,
        theta,
        first,
        sums,
        rows,
        size,
        slice_rows,
        features: tl.constexpr,
        columns: tl.constexpr,
        block: tl.constexpr,
        has_target: tl.constexpr,
        wraps_once: tl.constexpr,
    ):
        """Write a slice's sums of error · feature, of the error and of its square; `columns` are a power of two."""
        begin = tl.program_id(0) * slice_rows
        end = tl.minimum(begin + slice_rows, size)
        column = tl.arange(0, columns)
        used = column < features
        weights = tl.load(theta + column, mask=used, other=0.0)
        bias = tl.load(theta + features)
        offset = tl.load(first)
        along = tl.zeros((block, columns), dtype=theta.dtype.element_ty)
        plain = tl.zeros((block,), dtype=theta.dtype.element_ty)
        squared = tl.zeros((block,), dtype=theta.dtype.element_ty)
        for start in range(begin, end, block):
            inside = start + tl.arange(0, block)
            there = inside < end
            row = offset + inside
            # a remainder would take as long as reading the row
            row = tl.where(row >= rows, row - rows, row) if wraps_once else row % rows
            mask = there[:, None] & used[None, :]
            values = tl.load(x + row[:, None] * features + column[None, :], mask=mask, other=0.0)
            error = tl.sum(values * weights[None, :], axis=1) + bias
            if has_target:
                error -= tl.load(y + row, mask=there, other=0.0)
            error = tl.where(there, error, 0.0)
            along += values * error[:, None]
            plain += error
            squared += error * error
        to = sums + tl.program_id(0) * (features + 2)
        tl.store(to + column, tl.sum(along, axis=0), mask=used)
        tl.store(to + features, tl.sum(plain, axis=0))
        tl.store(to + features + 1, tl.sum(squared, axis=0))


def are_usable(x: Tensor) -> bool:
    """Return whether they sum batches like x: on a CUDA device, where Triton can build them."""
    return x.is_cuda and can_build()


@cache
def can_build() -> bool:
    """Return whether a kernel can be built and run; where Triton is there and cannot, a warning says why, once."""
    if triton is None:
        return False
    one = torch.zeros(1, 1, dtype=torch.float64, device="cuda")
    try:
        sum_slices(torch.zeros(2, dtype=torch.float64, device="cuda"), one, one, 1)
    except Exception as error:  # Triton's errors have no class in common, and a compiler may be missing
        logger.warning("Triton cannot build kernels here, and torch takes a batch's sums, slower: %s", error)
        return False
    return True


def sum_slices(
    theta: Tensor, x: Tensor, y: Tensor | None, slice_rows: int, *, first: Tensor | None = None, size: int | None = None
) -> Tensor:
    """Return each slice's sums [slices, features + 2]: of error · feature, of the error x · w + b - y, of its square.

    theta: weights and bias, [features + 1], in the dtype of x
    x, y: tables [rows, features] and [rows, 1], contiguous; without y it is taken as zero
    first: the row at which the batch begins, an int64 [1] on the device, below the number of rows; None: 0
    size: rows of the batch, which may be more than the table has; None: as many
    """
    rows, features = x.shape
    size = rows if size is None else size
    slices = -(-size // slice_rows)
    sums = x.new_empty(slices, features + 2)
    if not slices:
        return sums
    with torch.cuda.device(x.get_device()):  # Triton launches on the current one; the CPU's -1 changes nothing
        _sum_slice[(slices,)](
            x,
            x if y is None else y,
            theta,
            torch.zeros(1, dtype=torch.int64, device=x.device) if first is None else first,
            sums,
            rows,
            size,
            slice_rows,
            features=features,
            columns=triton.next_power_of_2(features),
            block=BLOCK,
            has_target=y is not None,
            wraps_once=size <= rows,
            num_warps=WARPS,
        )
    return sums
