"""Sums over a batch on a GPU from one read of it, by Triton: torch reads it twice, and launches ten operations.

They are the sums of the one reduction: each program sums a slice, in an order of its own, so that they depend neither
on the card nor on how many programs it runs at a time. A batch is rows of a table, from any row on, that go on at its
beginning: nothing is copied together. Without Triton, or without a C compiler for its launcher, torch's sums are taken.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs comes without it
    triton = None

BLOCK = 64  # rows that a program has in hand at a time
SLICES = 32  # whose sums the program that adds them up has in hand at a time
ROWS = 16  # of a matrix, that it has in hand at a time
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

    @triton.jit(do_not_specialize=["number", "slices", "size"])  # type: ignore[untyped-decorator]
    def _descend(  # type: ignore[no-untyped-def]
        sums,
        theta,
        settings,
        losses,
        inverse,
        gradient,
        step,
        direction,
        number,
        slices,
        size,
        features: tl.constexpr,
        columns: tl.constexpr,
        block: tl.constexpr,
        block_rows: tl.constexpr,
        is_turned: tl.constexpr,
    ):
        """Write the loss; move theta against the gradient, or, where it is to be turned, write what it becomes."""
        column = tl.arange(0, columns)
        own, weight = column <= features, column < features
        total = tl.zeros((columns,), dtype=tl.float64)
        for start in range(0, slices, block):
            row = start + tl.arange(0, block)
            mask = (row < slices)[:, None] & (column < features + 2)[None, :]
            part = tl.load(sums + row[:, None] * (features + 2) + column[None, :], mask=mask, other=0.0)
            total += tl.sum(part.to(tl.float64), axis=0)
        tl.store(losses + number, tl.sum(tl.where(column == features + 1, total, 0.0), axis=0) / size)
        now = tl.load(theta + column, mask=own, other=0.0)
        down = tl.where(own, 2 * (total / size), 0.0).to(now.dtype)
        most, l2 = tl.load(settings), tl.load(settings + 1)
        down += tl.where(weight, now * (2 * l2).to(now.dtype), 0.0)
        norm = tl.sqrt(tl.sum(down.to(tl.float64) * down, axis=0))
        down = (down * tl.where(most > 0, tl.minimum(most / (norm + 1e-6), 1.0), 1.0)).to(now.dtype)
        if is_turned:
            wide = down.to(tl.float64)
            tl.store(gradient + column, wide, mask=own)
            for start in range(0, features + 1, block_rows):
                row = start + tl.arange(0, block_rows)
                mask = (row <= features)[:, None] & own[None, :]
                part = tl.load(inverse + row[:, None] * (features + 1) + column[None, :], mask=mask, other=0.0)
                turned = tl.sum(part * wide[None, :], axis=1)
                tl.store(step + row, turned, mask=row <= features)
                tl.store(direction + row, turned.to(now.dtype), mask=row <= features)
        else:
            rate = tl.load(settings + 2 + number)
            tl.store(theta + column, (now - rate * down).to(now.dtype), mask=own)

    @triton.jit(do_not_specialize=["number", "slices", "size"])  # type: ignore[untyped-decorator]
    def _go_along(  # type: ignore[no-untyped-def]
        sums,
        theta,
        settings,
        gradient,
        step,
        direction,
        number,
        slices,
        size,
        features: tl.constexpr,
        columns: tl.constexpr,
        block: tl.constexpr,
    ):
        """Move theta by a step, as far along it as the loss falls; `sums` are those of predictions along it."""
        column = tl.arange(0, columns)
        own, weight = column <= features, column < features
        squares = tl.zeros((block,), dtype=tl.float64)
        for start in range(0, slices, block):
            row = start + tl.arange(0, block)
            part = tl.load(sums + row * (features + 2) + features + 1, mask=row < slices, other=0.0)
            squares += part.to(tl.float64)
        along = tl.load(direction + column, mask=weight, other=0.0).to(tl.float64)
        l2, rate = tl.load(settings + 1), tl.load(settings + 2 + number)
        curvature = 2 * (tl.sum(squares, axis=0) / size) + 2 * l2 * tl.sum(along * along, axis=0)
        turned = tl.load(step + column, mask=own, other=0.0)
        slope = tl.sum(tl.load(gradient + column, mask=own, other=0.0) * turned, axis=0)
        share = tl.where(curvature > 0, tl.minimum(tl.maximum(slope / curvature, 0.0), 1.0), 0.0)
        now = tl.load(theta + column, mask=own, other=0.0)
        tl.store(theta + column, (now - rate * (turned * share).to(now.dtype)).to(now.dtype), mask=own)


def are_usable(x: Tensor) -> bool:
    """Return whether they sum batches like x: on a CUDA device, where Triton can build them."""
    return x.is_cuda and can_build()


@cache
def can_build() -> bool:
    """Return whether a kernel can be built and run; where Triton is there and cannot, a warning says why, once."""
    if triton is None:
        return False
    try:
        try_out(torch.device("cuda"))
    except Exception as error:  # Triton's errors have no class in common, and a compiler may be missing
        logger.warning("Triton cannot build kernels here, and torch takes a batch's sums, slower: %s", error)
        return False
    return True


def try_out(device: torch.device) -> None:
    """Take a step of each kind over one row there; raises what Triton raises where it cannot."""
    one, two = (torch.eye(size, dtype=torch.float64, device=device) for size in (1, 2))
    steps = Steps(torch.zeros_like(two[0]), gradient_norm=0.0, l2=0.0, most=1)
    for inverse in (None, two):
        steps.take(0, lambda theta, with_target: sum_slices(theta, one, one if with_target else None, 1), 1, inverse)


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


def send(to: Tensor, values: Sequence[float]) -> None:
    """Write the first values of a table of one column, on a GPU behind what was launched, without waiting for that."""
    made = torch.tensor(values, dtype=to.dtype, pin_memory=to.is_cuda)
    to[: len(values)].copy_(made, non_blocking=True)


class Steps:
    """Steps of plain gradient descent by kernels: two launches each, four where gradients are turned; nothing waits.

    theta: weights and bias, [features + 1], which are moved in place
    settings: largest norm of a gradient (0: none), l2, and the step sizes of the next iterations, in float64
    losses: the mean squared errors of as many iterations, before their steps, in float64
    """

    def __init__(self, theta: Tensor, gradient_norm: float, l2: float, most: int) -> None:
        self.theta = theta
        self.settings = torch.zeros(2 + most, dtype=torch.float64, device=theta.device)
        send(self.settings, [gradient_norm, l2])
        self.losses = torch.zeros(most, dtype=torch.float64, device=theta.device)
        self._gradient, self._step = torch.zeros(2, len(theta), dtype=torch.float64, device=theta.device)
        self._direction = torch.zeros_like(theta)

    def choose_sizes(self, sizes: Sequence[float]) -> None:
        """Say how far the next iterations are to go."""
        send(self.settings[2:], sizes)

    def take(self, number: int, sum_batch: Callable[[Tensor, bool], Tensor], size: int, inverse: Tensor | None) -> None:
        """Take iteration `number` of those in hand.

        sum_batch: returns the sums of the batch's slices for a theta, with or without its target, see `sum_slices`
        size: its rows
        inverse: what turns gradients, [features + 1, features + 1] in float64
        """
        self._launch(
            _descend,
            sum_batch(self.theta, True),
            (self.losses, self._gradient if inverse is None else inverse, self._gradient, self._step, self._direction),
            (number, size),
            block_rows=ROWS,
            is_turned=inverse is not None,
        )
        if inverse is not None:
            sums = sum_batch(self._direction, False)
            self._launch(_go_along, sums, (self._gradient, self._step, self._direction), (number, size))

    def _launch(
        self, kernel: Any, sums: Tensor, tensors: Sequence[Tensor], numbers: tuple[int, int], **constants: int
    ) -> None:
        """Launch a kernel that adds up slices' sums in one program, and has these parameters behind those of all."""
        features, (number, size) = len(self.theta) - 1, numbers
        with torch.cuda.device(self.theta.get_device()):  # as in `sum_slices`
            kernel[(1,)](
                sums,
                self.theta,
                self.settings,
                *tensors,
                number,
                len(sums),
                size,
                features=features,
                columns=triton.next_power_of_2(features + 2),
                block=SLICES,
                num_warps=WARPS,
                **constants,
            )
