"""A batch as the products of its columns: all that a squared loss, its gradient and its curvature depend on.

Whatever linear models are trained on a batch, they need its rows but once. Rows are shifted and scaled before products
are taken, so that raw years and longitudes lose no digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
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


class GramStream:
    """The matrices of a stream's batches, in their order, again and again: a batch is streamed once where they fit.

    open_stream: returns the [rows, columns] batches from an iteration on
    period: after so many iterations the same batches come again; None: never
    """

    def __init__(
        self,
        units: Units,
        open_stream: Callable[[int], Iterator[Tensor]],
        period: int | None,
        *,
        reduction: Reduction = ALONE,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self.units, self.period = units, period
        self._open, self._reduction = open_stream, reduction
        self._most = most_bytes // (8 * (len(units.mean) + 2) ** 2)
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
        while (at := number % (self.period or math.inf)) < len(self._kept):
            yield self._kept[int(at)]
            number += 1
        with closing(self._open(number)) as stream:  # type: ignore[type-var]
            for batch in stream:
                gram = self.units.measure(batch, self._reduction)
                if number == len(self._kept) < self._most:
                    self._kept.append(gram)
                yield gram
                number += 1
                if len(self._kept) == self.period:
                    break
            else:
                return
        while True:
            yield self._kept[number % len(self._kept)]
            number += 1


def find_period(rows: int, batch_rows: int) -> int:
    """Return after how many batches over `rows` rows, gone through again and again, the same ones come again."""
    return rows // math.gcd(rows, batch_rows)
