"""Each row of the data once, on its way to training, so that the exact model costs no pass of its own.

What was taken in stands in the checkpoints and goes on from there: batches of one size, in their order, give the same
bits, however often the run was stopped.
"""

from __future__ import annotations

import copy

from torch import Tensor

from tasks.learning.features import Features
from tasks.learning.reduction import ALONE, Reduction
from tasks.learning.scoring import Moments
from tasks.learning.sums import MomentSums


class FirstPass:
    """The moments of `rows` rows that come in batches of `batch_rows`, wrapping or short at their end.

    offset: where this process's part of each batch begins, of which `reduction` makes the whole
    """

    def __init__(
        self, features: Features, rows: int, batch_rows: int, *, offset: int = 0, reduction: Reduction = ALONE
    ) -> None:
        self.rows = rows
        self.batches = 0
        self._batch_rows, self._offset, self._reduction = batch_rows, offset, reduction
        self.moments = self._before = Moments(features, batch_rows=batch_rows)

    @property
    def is_complete(self) -> bool:
        """Whether every row was taken in."""
        return self.batches * self._batch_rows >= self.rows

    def take(self, batch: Tensor) -> None:
        """Take in the rows of the next [rows, columns] batch that lie before the end of the data, if any."""
        if self.is_complete:
            return
        self._before = copy.copy(self.moments)
        left = self.rows - self.batches * self._batch_rows
        self.moments.add(batch, self._reduction, rows=min(left, self._batch_rows), offset=self._offset)
        self.batches += 1

    def sums(self, batches: int | None = None) -> MomentSums | None:
        """Return what was taken in, or what it was after so many batches, where that was the last but one or later."""
        most = -(-self.rows // self._batch_rows)
        wanted = self.batches if batches is None else min(batches, most)
        moments = {self.batches: self.moments, self.batches - 1: self._before}.get(wanted)
        return moments.sums(self.rows, wanted) if moments is not None and wanted else None

    def restore(self, sums: MomentSums) -> None:
        """Go on from what was taken in before."""
        self.batches = sums.batches
        self.moments.restore(sums)
        self._before = copy.copy(self.moments)
