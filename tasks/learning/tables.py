"""The rows that stay in memory after their first pass, in the order in which batches take them."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; torch's own on CPU. Sums of a slice that begins elsewhere differ in their last bits

logger = logging.getLogger(__name__)


def count_batches(rows: int, batch_rows: int, size: int) -> int:
    """Return after how many batches of `batch_rows` rows every one of `rows` rows was seen.

    Of a part of each batch, `size` rows, it is after how many the parts begin again: all that are ever seen were.
    """
    return -(-rows // batch_rows) if size == batch_rows else rows // math.gcd(rows, batch_rows)


class Table:
    """The rows that one rank ever sees of `rows` rows which are gone through in batches, again and again.

    A rank sees the same part of every batch. Batches begin at multiples of the greatest common divisor of their rows
    and all rows: parts that are no longer than that never overlap, and are kept one by one; else all rows are kept.

    first: what a batch consists of, [rows, columns] each, on one device
    pinned: whether it is page-locked memory of the host
    rows: of this table
    parts: its memory, [rows, columns] each
    """

    def __init__(self, first: Sequence[Tensor], rows: int, batch_rows: int, *, pinned: bool = False) -> None:
        self._like, self._size = [part.new_empty(0, part.shape[1]) for part in first], len(first[0])
        self._of, self._batch_rows, self._pinned = rows, batch_rows, pinned
        self._between = math.gcd(rows, batch_rows)
        self._apart = self._size <= self._between
        self.rows = rows // self._between * self._size if self._apart else rows
        self._streamed = 0
        self.parts: list[Tensor] = []

    @property
    def bytes(self) -> int:
        """How many bytes it takes; of page-locked memory torch takes powers of two."""
        sizes = [self.rows * part.shape[1] * part.element_size() for part in self._like]
        return sum(1 << (size - 1).bit_length() for size in sizes) if self._pinned else sum(sizes)

    def allocate(self) -> bool:
        """Take the memory, and return whether it was to be had; where it was not, a warning says so."""
        try:
            self.parts = [
                torch.empty(self.rows, part.shape[1], dtype=part.dtype, device=part.device, pin_memory=self._pinned)
                for part in self._like
            ]
            self._seen = torch.zeros(self.rows, 1, dtype=torch.bool)
        except RuntimeError as error:  # of which torch.OutOfMemoryError is one; the CPU's allocator raises no other
            logger.warning(
                "The data, %.3g GiB, do not stay on %s as they were to: %s; they are streamed again and again",
                self.bytes / 2**30, self._like[0].device, str(error).partition("\n")[0],
            )  # fmt: skip
            return False
        return True

    @property
    def is_full(self) -> bool:
        """Whether each of its rows was kept, and on the other ranks each of theirs may be: none leaves the first pass
        before all rows went by, though it has few of them, or none.
        """
        return self._streamed * self._batch_rows >= self._of and bool(self._seen.all())

    def keep(self, iteration: int, batch: Sequence[Tensor]) -> None:
        """Put a batch in; iterations count from the first one that was streamed."""
        self._streamed = iteration + 1
        start = self.start_of(iteration)
        for part, values in zip(self.parts, batch, strict=True):
            _put(part, start, values)
        _put(self._seen, start, torch.ones(self._size, 1, dtype=torch.bool))

    def take(self, iteration: int) -> list[Tensor]:
        """Return a batch; what is not for a copy to another device begins at a multiple of ALIGNMENT."""
        start = self.start_of(iteration)
        return [_wrapped(part, start, self._size, aligned=not self._pinned) for part in self.parts]

    def start_of(self, iteration: int) -> int:
        """Return the row at which a batch begins."""
        at = iteration * self._batch_rows % self._of
        return at // self._between * self._size if self._apart else at


def _put(table: Tensor, start: int, values: Tensor) -> None:
    """Copy the first values into a table from row `start` on, going on at its beginning behind its end."""
    values = values[: len(table)]
    until_end = values[: len(table) - start]
    table[start : start + len(until_end)] = until_end
    table[: len(values) - len(until_end)] = values[len(until_end) :]


def _wrapped(table: Tensor, start: int, size: int, *, aligned: bool) -> Tensor:
    """`size` rows of a table from `start`, wrapping at its end; a view where that is bit for bit safe."""
    part = table[start : start + size]
    if part.size(0) == size:
        return part.clone() if aligned and part.data_ptr() % ALIGNMENT else part
    parts, left = [part], size - len(part)
    while left > 0:
        parts.append(table[:left])
        left -= len(parts[-1])
    return torch.cat(parts)
