"""Sums over rows of every column, and their histograms: parts of a data set that are merged into the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tasks.learning.edges import Grid, choose_unit
from tasks.learning.tallying import Tally, find_function

AT_ONCE = 2**15 - 1  # values worked on together: in the processor's cache, and too few for torch to wake threads for


@dataclass(frozen=True)
class ColumnSums:
    """What columns hold over `rows` rows, measured in their histograms' units.

    mean: [columns] in float64, from the first edge on: where all are far from zero it loses no digits
    squares: [columns] in float64, the sum of the squared distances from the mean
    least, most: [columns] in float64
    counts: [columns, bins] in int64
    """

    rows: int
    mean: Tensor
    squares: Tensor
    least: Tensor
    most: Tensor
    counts: Tensor

    def merge(self, other: ColumnSums) -> ColumnSums:
        """Return those of these rows and others (Chan, Golub, LeVeque 1983, The American Statistician 37:3)."""
        rows, apart = self.rows + other.rows, other.mean - self.mean
        return ColumnSums(
            rows=rows,
            mean=self.mean + apart * (other.rows / rows),
            squares=self.squares + other.squares + apart**2 * (self.rows * other.rows / rows),
            least=torch.minimum(self.least, other.least),
            most=torch.maximum(self.most, other.most),
            counts=self.counts + other.counts,
        )

    @classmethod
    def join(cls, slices: Tensor, counts: Tensor) -> ColumnSums:
        """Return the whole, from its slices' sums in their order and all its rows counted: see `Histograms.measure`."""
        rows, mean, squares, least, most = slices[slices[:, 0, 0] > 0].unbind(dim=1)
        total = int(rows[:, 0].sum())
        centre = mean[0] + (rows * (mean - mean[0])).sum(dim=0) / total
        within, between = squares.sum(dim=0), (rows * (mean - centre).square()).sum(dim=0)
        return cls(total, centre, within + between, least.amin(dim=0), most.amax(dim=0), counts)


class Histograms:
    """Where the values of each column are counted: between which edges, and in which unit they are measured.

    unit: [columns] in float64, powers of two: what is divided by them loses nothing
    """

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        self.edges = tuple(tuple(map(float, each)) for each in edges)
        grids = [Grid.find(each) for each in self.edges]
        units = [grid.width if grid else choose_unit(each) for each, grid in zip(self.edges, grids, strict=True)]
        self.unit = torch.tensor(units, dtype=torch.float64)
        self._scale = (1 / self.unit)[:, None, None]
        self._origin = torch.tensor([each[0] for each in self.edges], dtype=torch.float64)[:, None, None] * self._scale
        self._searched = {
            at: torch.tensor(self.edges[at], dtype=torch.float64) / units[at]
            for at, grid in enumerate(grids)
            if grid is None
        }
        places = [grid.bins if grid else range(len(each) + 1) for each, grid in zip(self.edges, grids, strict=True)]
        self._stride = max(map(len, places))
        start = torch.arange(len(grids), dtype=torch.float64)[:, None] * self._stride
        first = torch.tensor([grid.first - 1.0 if grid else 0.0 for grid in grids], dtype=torch.float64)[:, None]
        last = torch.tensor([len(each) - 1.0 for each in places], dtype=torch.float64)[:, None]
        self._shift, self._lowest, self._highest = first - start, start, start + last
        self._bins = torch.tensor([[*each, *[0] * (self._stride - len(each))] for each in places])
        function, known = find_function(), [grid for grid in grids if grid]
        self._tally = Tally(function, known, self._origin.flatten()) if function and len(known) == len(grids) else None

    def measure(self, part: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Return the sums of the slices of `size` rows of a [rows, columns] part, and all rows counted.

        They are [slices, 5, columns] in float64, namely rows, mean, squares, least and most as in `ColumnSums`, and
        [columns, bins] in int64.
        """
        columns = len(self.edges)
        sums, cells = [torch.empty(0, 5, columns, dtype=torch.float64)], torch.zeros_like(self._bins)
        if self._tally:
            is_ready = (
                part.is_contiguous() and part.dtype == torch.float64
            )  # else each block is copied, not all at once
            blocks = [part] if is_ready else (block.double().flatten(end_dim=1) for block in cut(part, size))
            sums += [self._tally.add_up(block, size, cells) for block in blocks]
        else:
            sums += [self._add_up(block, cells) for block in cut(part, size)]
        bins = torch.zeros(columns, 1 + max(map(len, self.edges)), dtype=torch.int64)
        return torch.cat(sums), bins.scatter_add_(1, self._bins, cells)

    def _add_up(self, block: Tensor, cells: Tensor) -> Tensor:
        """Return the sums, [slices, 5, columns], of slices [slices, rows, columns], and count all values in `cells`."""
        at_once = max(1, AT_ONCE // block.size(1))
        found = []
        for start in range(0, len(self.edges), at_once):
            group = slice(start, start + at_once)
            values = block[:, :, group].permute(2, 0, 1).contiguous() * self._scale[group]
            cells += self._count(values.flatten(start_dim=1), group).view_as(cells)
            found.append(self._sum_up(values, group))
        return torch.cat(found, dim=2)

    def _count(self, values: Tensor, group: slice) -> Tensor:
        """Return how many of the measured values [columns of a group, rows] are in each cell of all columns."""
        places = torch.empty_like(values)
        np.floor(values.numpy(), out=places.numpy())  # torch's wakes threads for 2,048 values
        for at, edges in self._searched.items():
            if group.start <= at < group.stop:
                places[at - group.start] = torch.bucketize(values[at - group.start], edges, right=True)
        torch.clamp(places.sub_(self._shift[group]), self._lowest[group], self._highest[group], out=places)
        return torch.bincount(places.flatten().int(), minlength=self._bins.numel())

    def _sum_up(self, values: Tensor, group: slice) -> Tensor:
        """Return the sums, [slices, 5, columns], of measured slices [columns, slices, rows], which are overwritten."""
        least, most = values.amin(dim=2), values.amax(dim=2)
        mean = values.sub_(self._origin[group]).mean(dim=2, keepdim=True)
        squares = values.sub_(mean).square_().sum(dim=2)
        rows = torch.full_like(squares, values.size(2))
        return torch.stack([rows, mean[:, :, 0], squares, least, most]).permute(2, 0, 1)


def cut(table: Tensor, size: int) -> Iterator[Tensor]:
    """Yield slices of `size` rows of a [rows, columns] table, several at once, as [slices, rows, columns].

    The last one, where it has fewer rows, comes alone.
    """
    whole = len(table) // size * size
    at_once = size * max(1, AT_ONCE // (size * table.size(1)))
    for start in range(0, whole, at_once):
        yield table[start : min(start + at_once, whole)].view(-1, size, table.size(1))
    if whole < len(table):
        yield table[whole:].unsqueeze(0)
