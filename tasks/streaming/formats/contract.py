"""The data contract of a data set's columns, and how a shard's own header line is held against it."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.errors import RowError
from tasks.naming import join_names, suggest
from tasks.streaming.manifest import Manifest

Header = Literal["infer"] | int | None
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Contract:
    """What every shard must hold.

    columns: the columns that a batch holds, in its order
    header:  the first shard's header line; None where shards have none
    drops_bad_rows: whether lines that break the contract are left out, rather than being an error
    cells:   the names of all cells of a line, where there is no header line and not all are read
    """

    columns: tuple[str, ...]
    header: tuple[str, ...] | None
    drops_bad_rows: bool = False
    cells: tuple[str, ...] | None = None

    @classmethod
    def of(cls, manifest: Manifest, *, drops_bad_rows: bool = False) -> "Contract":
        return cls(manifest.columns, manifest.header, drops_bad_rows, manifest.cells)

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
