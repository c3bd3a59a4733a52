"""What every column holds, added up while batches stream: memory for the histograms' bins, and for no row.

Counts, least and most are the same to the last bit however rows are cut and in which order parts are merged. Mean and
deviation are so too where the batches are the same, over whatever number of ranks (their sums go through the slices of
`.reduction`); merged in another order they agree to 1e-12 of the column's largest distance from zero, or better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from tasks.errors import TrainingError
from tasks.learning.columnsums import ColumnSums, Histograms, cut
from tasks.learning.edges import MOST_BINS, lay_edges
from tasks.learning.profiles import DataProfile
from tasks.learning.reduction import ALONE, Reduction, slice_rows
from tasks.learning.sums import ProfileSums

SAMPLED = 2**14  # rows of the first batch that edges are chosen by, spread over it evenly
TAIL = 0.001  # the share of rows at either end that may be in the outer bins
LONG = 0.5  # of the range of all other rows: an end that adds no more is not cut off


def take_profile(
    batches: Iterable[Tensor], columns: Sequence[str], edges: Mapping[str, Sequence[float]] | None = None
) -> DataProfile:
    """Return what the named columns of [rows, columns] batches hold, over all their rows.

    edges: ascending, of the histograms' bins by column, such as another profile's `edges`, so that both can be
        compared; of a column without, they are chosen by the first batch

    Raises TrainingError where there are no rows.
    """
    profiler = Profiler(columns, edges)
    for batch in filter(len, batches):
        profiler.add(batch)
    sums = profiler.sums()
    if sums is None:
        raise TrainingError("no rows were streamed, so there is no profile")
    return sums.profile()


class Profiler:
    """The profile of the rows that came so far; a copy stays as it is when more rows come.

    batch_rows: rows of a whole batch. Of a short one the sums are then those of a whole one whose other rows do not
        count, to the last bit; None: each batch is whole
    """

    def __init__(
        self,
        columns: Sequence[str],
        edges: Mapping[str, Sequence[float]] | None = None,
        *,
        batch_rows: int | None = None,
        reduction: Reduction = ALONE,
    ) -> None:
        self.columns = tuple(columns)
        self.edges = edges or {}
        self._batch_rows, self._reduction = reduction.batch_size or batch_rows, reduction
        self._histograms: Histograms | None = None
        self._sums: ColumnSums | None = None

    def add(self, batch: Tensor, *, rows: int | None = None, offset: int = 0) -> None:
        """Take in a [rows, columns] batch, or this rank's slices of it, which begin at its row `offset`.

        rows: how many of the whole batch's rows count, from its first one on; None: all
        """
        part = batch if rows is None else batch[: max(rows - offset, 0)]
        size = slice_rows(self._batch_rows or len(batch))
        slices = -(-len(batch) // size)
        if self._histograms is None:
            self._histograms = Histograms(self._choose_edges(part, size, slices))
        sums, counts = self._histograms.measure(part, size)
        found = ColumnSums.join(self._reduction.gather(_fill(sums, slices)), self._reduction.total(counts))
        self._sums = self._sums.merge(found) if self._sums else found

    def watch(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield [rows, columns and perhaps more] batches, taken in from the beginning."""
        self._sums = None
        for batch in batches:
            self.add(batch[:, : len(self.columns)])
            yield batch

    def _choose_edges(self, part: Tensor, size: int, slices: int) -> list[Sequence[float]]:
        """Return each column's edges: those that are given, else those that the first batch's rows suggest."""
        if all(name in self.edges for name in self.columns):
            return [self.edges[name] for name in self.columns]
        share = min(size, max(1, SAMPLED * size // (self._batch_rows or len(part))))
        none = torch.empty(0, share, len(self.columns), dtype=torch.float64)
        own = torch.cat([none, *(_sample(block, share) for block in cut(part, size))])
        sample = self._reduction.gather(_fill(own, slices, math.nan)).flatten(end_dim=1)
        columns = zip(self.columns, sample[~sample[:, 0].isnan()].unbind(dim=1), strict=True)
        return [self.edges[name] if name in self.edges else suggest_edges(values) for name, values in columns]

    def sums(self) -> ProfileSums | None:
        """Return what was taken in, as plain numbers; None where that is nothing."""
        if self._sums is None or self._histograms is None:
            return None
        found, edges = self._sums, self._histograms.edges
        return ProfileSums(
            rows=found.rows,
            columns=self.columns,
            edges=edges,
            units=tuple(self._histograms.unit.tolist()),
            means=tuple(found.mean.tolist()),
            squares=tuple(found.squares.tolist()),
            least=tuple(found.least.tolist()),
            most=tuple(found.most.tolist()),
            counts=tuple(tuple(row[: len(each) + 1]) for row, each in zip(found.counts.tolist(), edges, strict=True)),
        )

    def restore(self, sums: ProfileSums) -> None:
        """Go on from what was taken in before, between the same edges."""
        self._histograms = Histograms(sums.edges)
        mean, squares, least, most = torch.tensor(
            [sums.means, sums.squares, sums.least, sums.most], dtype=torch.float64
        )
        bins = max(map(len, sums.counts))
        counts = torch.tensor([[*each, *[0] * (bins - len(each))] for each in sums.counts])
        self._sums = ColumnSums(sums.rows, mean, squares, least, most, counts)

    def merge(self, sums: ProfileSums) -> None:
        """Take in what was taken in elsewhere, between the same edges."""
        before = self._sums
        self.restore(sums)
        self._sums = before.merge(self._sums) if before and self._sums else self._sums


def merge_sums(parts: Sequence[ProfileSums]) -> ProfileSums | None:
    """Return what parts of a data set hold together, all of them between the same edges; None without parts."""
    if not parts:
        return None
    profiler = Profiler(parts[0].columns)
    for part in parts:
        profiler.merge(part)
    return profiler.sums()


def suggest_edges(values: Tensor) -> tuple[float, ...]:
    """Return edges of bins for values [rows] in float64, one at least, and others like them."""
    ordered = values.sort().values
    beyond = int(TAIL * len(ordered))
    least, low, high, most = (float(ordered[at]) for at in (0, beyond, -1 - beyond, -1))
    whole = bool((ordered == ordered.floor()).all())
    room = math.inf if whole and most - least < MOST_BINS else LONG * (high - low)
    return lay_edges(least if low - least <= room else low, most if most - high <= room else high, whole=whole)


def _sample(block: Tensor, share: int) -> Tensor:
    """Return so many rows of each slice [slices, rows, columns], in equal distances."""
    return block[:, torch.arange(share) * block.size(1) // share].double()


def _fill(slices: Tensor, count: int, value: float = 0.0) -> Tensor:
    """Return slices' sums [slices, …], followed by those of slices without rows, `count` in all."""
    missing = count - len(slices)
    return torch.cat([slices, slices.new_full((missing, *slices.shape[1:]), value)]) if missing else slices
