"""The edges of a histogram's bins, on a grid whose cells are a power of two wide, so that counting needs no search.

A number divided by a power of two is exact, and so is the whole number below it: which cell a value is in is known
without rounding, by arithmetic alone, and equal on every machine.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

MOST_BINS = 64  # between the edges; where they are not a whole number each, at least half as many
MOST_CELLS = 2**10  # of a grid: beyond, searching costs less than counters that leave the processor's cache
LARGEST_WHOLE = 2**50  # from which on a half beside a whole number is no float64, or soon none
LEAST_EXPONENT = -1000  # of a cell's width: by less, values below 2 would be multiplied to infinity


def lay_edges(low: float, high: float, *, whole: bool) -> tuple[float, ...]:
    """Return edges around nearly all values, which are between `low` and `high`; a bin for each number that fits.

    whole: whether the values are whole numbers; where those are few, each has a bin of its own, in whose middle it is
    """
    if whole and high - low < MOST_BINS and max(abs(low), abs(high)) < LARGEST_WHOLE:
        return tuple(number - 0.5 for number in range(math.floor(low), math.ceil(high) + 2))
    if low == high:
        apart = abs(low) / 2 or 1.0
        low, high = max(low - apart, -sys.float_info.max), min(high + apart, sys.float_info.max)
    width = 2.0 ** math.ceil(math.log2(max(high / MOST_BINS - low / MOST_BINS, 2.0**LEAST_EXPONENT)))
    lines = range(math.floor(low / width), math.floor(high / width) + 2)
    return tuple(edge for line in lines if math.isfinite(edge := line * width))


def choose_unit(edges: Sequence[float]) -> float:
    """Return a power of two in which edges that lie on no grid are measured, and values about as large."""
    return 2.0 ** max(math.frexp(max(map(abs, edges)))[1], LEAST_EXPONENT)


@dataclass(frozen=True)
class Grid:
    """Cells [first · width, (first + 1) · width) and so on, `cells` of them, on whose lines all edges lie.

    width: a power of two
    bins: [cells + 2] which of the edges' bins each cell is in: what is below the first cell, the cells, what is above
    """

    width: float
    first: int
    cells: int
    bins: tuple[int, ...]

    @classmethod
    def find(cls, edges: Sequence[float]) -> Self | None:
        """Return the coarsest grid that ascending edges lie on; None where it would have too many cells."""
        ratios = [edge.as_integer_ratio() for edge in map(float, edges)]
        parts = max(denominator for _, denominator in ratios)  # each is a power of two, as is every float's
        numbers = [numerator * (parts // denominator) for numerator, denominator in ratios]
        common = math.gcd(*numbers) or parts
        step = common & -common
        first, last = numbers[0] // step, numbers[-1] // step
        is_fine = step.bit_length() - parts.bit_length() < LEAST_EXPONENT
        if is_fine or last - first > MOST_CELLS or max(abs(first), abs(last)) > LARGEST_WHOLE:
            return None
        lines = [number // step for number in numbers]
        bins = (0, *(bisect_right(lines, line) for line in range(first, last)), len(lines))
        return cls(step / parts, first, last - first, bins)
