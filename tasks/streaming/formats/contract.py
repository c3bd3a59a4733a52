"""The data contract of a data set's columns, and how a shard's header line and its numbers are held against it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from tasks.errors import RowError
from tasks.naming import join_names, suggest
from tasks.streaming.formats.ranges import find_ranges
from tasks.streaming.formats.terms import NO_LIMITS, ColumnTerms, Terms
from tasks.streaming.manifest import Manifest

if TYPE_CHECKING:
    from numpy.typing import NDArray

Header = Literal["infer"] | int | None
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Contract:
    """What every shard must hold.

    columns: the columns that a batch holds, in its order
    header:  the first shard's header line; None where shards have none
    drops_bad_rows: whether lines that break the contract are left out, rather than being an error
    cells:   the names of all cells of a line, where there is no header line and not all are read
    terms:   what a contract file states; None where there is none
    """

    columns: tuple[str, ...]
    header: tuple[str, ...] | None
    drops_bad_rows: bool = False
    cells: tuple[str, ...] | None = None
    terms: Terms | None = None

    @classmethod
    def of(cls, manifest: Manifest, *, drops_bad_rows: bool = False) -> "Contract":
        return cls(manifest.columns, manifest.header, drops_bad_rows, manifest.cells, manifest.terms)

    @cached_property
    def bounds(self) -> tuple[tuple[int, ColumnTerms], ...]:
        """Of the columns that a batch holds, those whose numbers are bound, each with its place among them."""
        found = [self.terms and self.terms.find(column) for column in self.columns]
        return tuple((place, column) for place, column in enumerate(found) if column and column.is_bound)

    @cached_property
    def digest(self) -> str | None:
        """SHA-256 (hex) of all bounds; None where there are none."""
        return self.terms.digest(self.columns) if self.terms else None

    @cached_property
    def _limits(self) -> "tuple[NDArray[Any], NDArray[Any], NDArray[Any]]":
        import numpy as np

        columns = dict(self.bounds)
        limits = [columns[place].limits if place in columns else NO_LIMITS for place in range(len(self.columns))]
        least, most, whole = zip(*limits, strict=True)
        return np.array(least), np.array(most), np.array(whole)

    def round_limits(self, dtype: Any) -> "tuple[NDArray[Any], NDArray[Any], NDArray[Any]]":
        """Return the least and the most that each column's numbers may be, as this dtype, and whether they are whole.

        [columns] each, the last of bools.
        """
        import numpy as np

        least, most, whole = self._limits
        with np.errstate(over="ignore"):  # a bound beyond float32 is none there
            return least.astype(dtype), most.astype(dtype), whole

    def find_breaches(self, rows: "NDArray[Any]") -> "NDArray[Any]":
        """Return which of [rows, columns], row-major, break the bounds: their indices, ascending."""
        import numpy as np

        if not self.bounds or self._keeps(rows):
            return np.empty(0, dtype=np.intp)
        least, most, whole = self.round_limits(rows.dtype)
        bad = ~((least <= rows) & (rows <= most)).all(axis=1)
        bad |= (np.rint(rows[:, whole]) != rows[:, whole]).any(axis=1)
        return np.flatnonzero(bad)

    def _keeps(self, rows: "NDArray[Any]") -> bool:
        """Return whether all rows keep the bounds, in less time than it takes to find those that do not."""
        if not len(rows):
            return True
        least, most, whole = self.round_limits(rows.dtype)
        found = find_ranges(rows)
        return bool((found[0] >= least).all() and (found[1] <= most).all() and not (found[2] & whole).any())

    def explain(self, numbers: "Sequence[Any] | NDArray[Any]", names: Sequence[str]) -> tuple[str, str]:
        """Return the first of the columns `names` whose number breaks its bounds, and how.

        numbers: NumPy scalars, those of one row that breaks them
        """
        assert self.terms, "there are bounds"
        faults = {column.name: column.explain(numbers[place], self.terms.uri) for place, column in self.bounds}
        return next((name, fault) for name in names if (fault := faults.get(name)))

    def check_header(self, uri: str, found: Sequence[str]) -> None:
        """Raise RowError where a shard's header lacks a column, repeats one, or has one that nobody expects.

        The order may differ. Columns that were not asked for may be there only where columns were chosen by name,
        that is, where the first shard has such columns too.
        """
        for column in self.columns:
            if column not in found:
                hint = "; it seems to have no header line" if is_numeric(found) else ""
                raise RowError(
                    f"{uri}, line 1: column {column!r} is missing; found {join_names(found)}"
                    f"{suggest(column, found)}{hint}: {_REMEDY}"
                )
        repeated = sorted({name for name in found if list(found).count(name) > 1})
        if repeated:
            raise RowError(f"{uri}, line 1: column {repeated[0]!r} is in the header more than once: {_REMEDY}")
        if self.header is not None and set(self.header) == set(self.columns):
            extra = [name for name in found if name not in self.columns]
            if extra:
                raise RowError(
                    f"{uri}, line 1: column {extra[0]!r} is not in the contract ({join_names(self.columns)}): "
                    "name the columns to read with `columns`, or correct the shard"
                )


_REMEDY = "correct the shard, or leave it out of the glob"


def split_line(line: bytes) -> list[str]:
    """Return the cells of one line of CSV, without quotes, byte order mark and line end."""
    text = line.removeprefix(BYTE_ORDER_MARK).rstrip(b"\r\n").decode("utf-8", errors="replace")
    try:
        return next(csv.reader([text]), [])
    except csv.Error:  # a carriage return inside the line
        return text.split(",")


def is_numeric(cells: Sequence[str]) -> bool:
    """Return whether every cell is a number, as no header's is."""
    for cell in cells:
        try:
            float(cell)
        except ValueError:
            return False
    return bool(cells)


def name_columns(width: int) -> tuple[str, ...]:
    """Return names for the columns of shards without a header line: column_0, column_1, …"""
    return tuple(f"column_{index}" for index in range(width))
