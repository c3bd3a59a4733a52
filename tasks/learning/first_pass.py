"""Each row of the data once, on its way to training, so that exact model and profile cost no pass of their own.

What was taken in stands in the checkpoints and goes on from there: batches of one size, in their order, give the same
bits, however often the run was stopped.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from tasks.learning.features import Features
from tasks.learning.profiled import Profiler
from tasks.learning.reduction import ALONE, Reduction
from tasks.learning.scoring import Moments
from tasks.learning.sums import MomentSums


class FirstPass:
    """Moments and profile of `rows` rows that come in batches of `batch_rows`, wrapping or short at their end.

    edges: of the profile's histograms by column, see `take_profile`
    offset: where this process's part of each batch begins, of which `reduction` makes the whole
    """

    def __init__(
        self,
        features: Features,
        rows: int,
        batch_rows: int,
        *,
        edges: Mapping[str, Sequence[float]] | None = None,
        offset: int = 0,
        reduction: Reduction = ALONE,
    ) -> None:
        self.rows = rows
        self.batches = 0
        self._batch_rows, self._offset, self._reduction = batch_rows, offset, reduction
        self.moments = Moments(features, batch_rows=batch_rows)
        self.profiler: Profiler | None = Profiler(features.columns, edges, batch_rows=batch_rows, reduction=reduction)
        self._keep_before()

    @property
    def is_complete(self) -> bool:
        """Whether every row was taken in."""
        return self.batches * self._batch_rows >= self.rows

    def take(self, batch: Tensor) -> None:
        """Take in the rows of the next [rows, columns] batch that lie before the end of the data, if any."""
        if self.is_complete:
            return
        self._keep_before()
        rows = min(self.rows - self.batches * self._batch_rows, self._batch_rows)
        self.moments.add(batch, self._reduction, rows=rows, offset=self._offset)
        if self.profiler:
            self.profiler.add(batch, rows=rows, offset=self._offset)
        self.batches += 1

    def sums(self, batches: int | None = None) -> MomentSums | None:
        """Return what was taken in, or what it was after so many batches, where that was the last but one or later."""
        most = -(-self.rows // self._batch_rows)
        wanted = self.batches if batches is None else min(batches, most)
        now = self.moments, self.profiler
        known = {self.batches: now, self.batches - 1: self._before}.get(wanted)
        if known is None or not wanted:
            return None
        moments, profiler = known
        return replace(moments.sums(self.rows, wanted), profile=profiler.sums() if profiler else None)

    def restore(self, sums: MomentSums) -> None:
        """Go on from what was taken in before; without a profile where that has none."""
        self.batches = sums.batches
        self.moments.restore(sums)
        if sums.profile is None:
            self.profiler = None
        elif self.profiler:
            self.profiler.restore(sums.profile)
        self._keep_before()

    def _keep_before(self) -> None:
        self._before = copy.copy(self.moments), copy.copy(self.profiler)
