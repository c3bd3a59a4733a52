"""Sums over rows from which means, covariances and the exact model follow: plain, so that they can be kept anywhere."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from tasks.learning.profiles import ColumnProfile, DataProfile

MOMENTS = "moments"  # under this name they stand in a checkpoint's facts


@dataclass(frozen=True, kw_only=True)
class ProfileSums:
    """What a profile follows from, over `rows` rows: of each column, in the order of `columns`.

    edges, counts: of the histograms, see `ColumnProfile`
    units: powers of two, in which means, squares, least and most are measured, so that no square is too large
    means: from the first edge on
    squares: the sum of the squared distances from the mean
    """

    rows: int
    columns: tuple[str, ...]
    edges: tuple[tuple[float, ...], ...]
    units: tuple[float, ...]
    means: tuple[float, ...]
    squares: tuple[float, ...]
    least: tuple[float, ...]
    most: tuple[float, ...]
    counts: tuple[tuple[int, ...], ...]

    def profile(self) -> DataProfile:
        """Return what follows from them. A constant column's mean is that constant, without the sums' rounding."""
        return DataProfile(rows=self.rows, columns=tuple(map(self._describe, range(len(self.columns)))))

    def _describe(self, at: int) -> ColumnProfile:
        unit, least, most = self.units[at], self.least[at], self.most[at]
        return ColumnProfile(
            name=self.columns[at],
            rows=self.rows,
            mean=self.edges[at][0] + self.means[at] * unit if least < most else least * unit,
            deviation=math.sqrt(self.squares[at] / self.rows) * unit if least < most else 0.0,
            least=least * unit,
            most=most * unit,
            edges=self.edges[at],
            counts=self.counts[at],
        )

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` returned, or JSON made of it."""
        lists = {name: tuple(value) for name, value in plain.items() if name != "rows"}
        nested = {name: tuple(map(tuple, plain[name])) for name in ("edges", "counts")}
        return cls(rows=plain["rows"], **(lists | nested))


@dataclass(frozen=True, kw_only=True)
class MomentSums:
    """Sums over the first `rows` of a data set's `of` rows, each less `shift`: features first, then the target.

    batches: from how many batches they were taken
    products: of each two columns, [features + 1, features + 1], row by row
    profile: of the same rows; None where an earlier version took them, which had none
    """

    rows: int
    of: int
    batches: int
    shift: tuple[float, ...]
    sums: tuple[float, ...]
    products: tuple[tuple[float, ...], ...]
    profile: ProfileSums | None = None

    @property
    def is_complete(self) -> bool:
        """Whether they are over all rows."""
        return self.rows == self.of

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` returned, or JSON made of it."""
        profile = plain.get("profile")
        return cls(**{**plain, "profile": profile and ProfileSums.from_dict(profile)})
