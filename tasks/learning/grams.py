"""A batch as the products of its columns: all that a squared loss, its gradient and its curvature depend on.

Whatever linear models are trained on a batch, they need its rows but once. Rows are shifted and scaled before products
are taken, so that raw years and longitudes lose no digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import reduce
from itertools import islice

import torch
from torch import Tensor

from tasks.learning.features import Features
from tasks.learning.reduction import ALONE, Reduction, add_up, count_rows, multiply_columns
from tasks.learning.scaling import Scaling

MOST_BYTES = 2**30  # of matrices that are kept: those of 800,000 batches of 11 features


@dataclass(frozen=True)
class Gram:
    """The products [z, 1, t]ᵀ[z, 1, t] of `rows` rows, [features + 2, features + 2] in float64.

    z are the features and t the target, as `Units` measures them.
    """

    products: Tensor
    rows: int

    def add(self, other: Gram) -> Gram:
        """Return that of these rows and others, measured alike."""
        return Gram(self.products + other.products, self.rows + other.rows)

    def less(self, other: Gram) -> Gram:
        """Return that of these rows without others that are among them."""
        return Gram(self.products - other.products, self.rows - other.rows)


@dataclass(frozen=True)
class Units:
    """What rows are measured in before products are taken: features less `mean` by `scale`, target less `target_mean`.

    mean, scale: [features] in float64
    """

    features: Features
    mean: Tensor
    scale: Tensor
    target_mean: float

    @classmethod
    def of(cls, features: Features, batch: Tensor, reduction: Reduction = ALONE) -> Units:
        """Take them from a [rows, columns] batch, such as the first one."""
        scaling = Scaling.of(features.of(batch), reduction=reduction)
        y = features.target_of(batch).double().contiguous()
        mean = add_up(lambda y: y.sum(dim=1), y, reduction=reduction) / count_rows(y, reduction)
        return cls(features, scaling.mean, scaling.scale, float(mean))

    def measure(self, batch: Tensor, reduction: Reduction = ALONE) -> Gram:
        """Return the products of a [rows, columns] batch, or of all ranks' slices of it, added in their order."""
        x, y = self.features.of(batch), self.features.target_of(batch)
        table = torch.empty(len(batch), len(self.mean) + 2, dtype=torch.float64)
        torch.sub(x, self.mean, out=table[:, :-2]).div_(self.scale)
        table[:, -2] = 1
        table[:, -1:] = y - self.target_mean
        products = add_up(multiply_columns, table, reduction=reduction)
        return Gram(products, count_rows(table, reduction))

    def add_errors(self, gram: Gram, w: Tensor, b: Tensor) -> float:
        """Return the sum of squared errors, over a matrix's rows, of w [features, 1] and b [1, 1] for raw features."""
        constant = b + self.mean[None, :] @ w - self.target_mean
        direction = torch.cat([self.scale[:, None] * w, constant, torch.full((1, 1), -1.0, dtype=torch.float64)])
        return float(direction.T @ gram.products @ direction)


Stream = Generator[Gram, None, None]


class GramStream:
    """The matrices of a stream's batches, in their order, again and again: a batch is streamed once where they fit.

    The stream stays open where it was left, until this is closed.

    open_stream: returns the matrices of the batches from an iteration on
    period: after so many iterations the same batches come again; None: never
    begun: the stream from iteration 0 on, where it is open already
    """

    def __init__(
        self,
        units: Units,
        open_stream: Callable[[int], Stream],
        period: int | None,
        *,
        begun: Stream | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.units, self.period = units, period
        self._open, self._stream = open_stream, begun
        self._most = count_kept(len(units.mean), most_bytes)
        self._kept: list[Gram] = []

    def by(self, multiple: int) -> Iterator[Gram]:
        """Yield the matrices of batches that are so many times as large, from the first one on."""
        batches = iter(self)
        while parts := list(islice(batches, multiple)):
            yield reduce(Gram.add, parts)

    @property
    def streamed(self) -> int:
        """How many batches' matrices are at hand."""
        return len(self._kept)

    def __iter__(self) -> Iterator[Gram]:
        """Yield the matrix of iteration 0, 1, …; without end where the stream has none."""
        number = 0
        while (at := int(number % (self.period or math.inf))) < self._most:
            if at == len(self._kept) and not self._keep_next():
                return
            yield self._kept[at]
            number += 1
        stream, self._stream = self._stream, None  # it has come as far
        with closing(stream or self._open(number)) as rest:
            yield from rest

    def close(self) -> None:
        """End the stream."""
        if self._stream:
            self._stream.close()

    def _keep_next(self) -> bool:
        """Return whether there was one."""
        self._stream = self._stream or self._open(len(self._kept))
        kept = list(islice(self._stream, 1))
        self._kept += kept
        if len(self._kept) == self.period:
            self.close()
        return bool(kept)


def count_kept(features: int, most_bytes: int = MOST_BYTES) -> int:
    """Return the matrices of how many batches are kept."""
    return most_bytes // (8 * (features + 2) ** 2)


def find_period(rows: int, batch_rows: int) -> int:
    """Return after how many batches over `rows` rows, gone through again and again, the same ones come again."""
    return rows // math.gcd(rows, batch_rows)
