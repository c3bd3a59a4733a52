"""What a data set holds, column by column: plain, so that it stands in a record and travels with a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

PROFILE = "profile.json"  # its file, in a run's record under data/ and beside a model's weights


@dataclass(frozen=True, kw_only=True)
class ColumnProfile:
    """What one column holds over some rows, one at least.

    mean, deviation: in the column's unit; the deviation is that of these rows, not an estimate from a sample
    edges: ascending, of the histogram's bins
    counts: [edges + 1] rows: below the first edge, from each edge on until the next, from the last edge on
    """

    name: str
    rows: int
    mean: float
    deviation: float
    least: float
    most: float
    edges: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def is_constant(self) -> bool:
        """Whether all its values are one."""
        return self.least == self.most

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `asdict` returned, or JSON made of it."""
        return cls(**{**plain, "edges": tuple(plain["edges"]), "counts": tuple(plain["counts"])})


@dataclass(frozen=True, kw_only=True)
class DataProfile:
    """What a data set holds: its columns, each over all `rows`."""

    rows: int
    columns: tuple[ColumnProfile, ...]

    @property
    def edges(self) -> Mapping[str, tuple[float, ...]]:
        """The edges of each column's histogram, for another profile that is to be compared with this one."""
        return {column.name: column.edges for column in self.columns}

    def to_dict(self) -> dict[str, Any]:
        """Return the same as plain JSON types."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Read what `to_dict` returned, or JSON made of it."""
        return cls(rows=plain["rows"], columns=tuple(map(ColumnProfile.from_dict, plain["columns"])))
