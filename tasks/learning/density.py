"""How predictions lie beside the target, counted while batches stream: memory for the bins, and for no row."""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.learning.reduction import ALONE, Reduction
from tasks.learning.scores import Density

BINS = 60
RESIDUAL_BINS = 81  # odd, so that no error at all is in the middle of one
INNER = 0.998  # the share of the first rows that the frame is made for
MOST_SAMPLED = 2**20  # torch.quantile takes 2**24 values at most


class DensitySums:
    """Rows counted by target and prediction, and by their difference, in bins that the first rows lay down."""

    def __init__(self, target: Tensor, predicted: Tensor) -> None:
        low, high = _frame(target)
        width = high - low
        lowest, highest = _frame(predicted)  # a model that is far off does not shrink the target to a point
        self.edges = _edges(max(min(low, lowest), low - width), min(max(high, highest), high + width), BINS)
        reach = max(map(abs, _frame(predicted - target)))
        self.residual_edges = _edges(-reach, reach, RESIDUAL_BINS)
        self.counts = torch.zeros(BINS * BINS, dtype=torch.int64)
        self.residual_counts = torch.zeros(RESIDUAL_BINS, dtype=torch.int64)
        self.beyond = self.residual_beyond = 0

    def add(self, target: Tensor, predicted: Tensor) -> None:
        """Take in rows: the target and what was predicted; each [rows] in float64."""
        cell = _bin(target, self.edges) * BINS + _bin(predicted, self.edges)
        self.counts += torch.bincount(cell, minlength=BINS * BINS)
        residual = _bin(predicted - target, self.residual_edges)
        self.residual_counts += torch.bincount(residual, minlength=RESIDUAL_BINS)
        self.beyond += int((_is_beyond(target, self.edges) | _is_beyond(predicted, self.edges)).sum())
        self.residual_beyond += int(_is_beyond(predicted - target, self.residual_edges).sum())

    def density(self, reduction: Reduction = ALONE) -> Density:
        """Return what was counted here, and by all other ranks."""
        own = torch.cat([self.counts, self.residual_counts, torch.tensor([self.beyond, self.residual_beyond])])
        sizes = [BINS * BINS, RESIDUAL_BINS, 2]
        counts, residual_counts, (beyond, residual_beyond) = torch.split(reduction.total(own), sizes)
        return Density(
            edges=tuple(self.edges.tolist()),
            counts=tuple(map(tuple, counts.reshape(BINS, BINS).tolist())),
            residual_edges=tuple(self.residual_edges.tolist()),
            residual_counts=tuple(residual_counts.tolist()),
            beyond=int(beyond),
            residual_beyond=int(residual_beyond),
        )


def _frame(values: Tensor) -> tuple[float, float]:
    """Return the range in which nearly all of the first values are."""
    outside = torch.tensor([(1 - INNER) / 2, (1 + INNER) / 2], dtype=torch.float64)
    low, high = torch.quantile(values[:MOST_SAMPLED], outside).nan_to_num(0.0).tolist()
    return low, high


def _edges(low: float, high: float, bins: int) -> Tensor:
    """Return the edges of bins from low to high, with a margin; [bins + 1]."""
    margin = 0.03 * (high - low) or max(abs(low), 1.0) * 0.5  # all rows may be alike
    return torch.linspace(low - margin, high + margin, bins + 1, dtype=torch.float64)


def _bin(values: Tensor, edges: Tensor) -> Tensor:
    """Return the number of the bin that each value is in; those beyond are in the outermost."""
    return torch.bucketize(values, edges[1:-1].contiguous(), right=True)


def _is_beyond(values: Tensor, edges: Tensor) -> Tensor:
    return (values < edges[0]) | (values > edges[-1])
