"""Where decoders write rows to: below those that are there, row-major, without another copy in between."""

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Rows(Protocol):
    """Rows that are filled from the top, block by block."""

    rows: int

    def room(self, rows: int) -> "NDArray[Any]":
        """Return where the next rows go: [rows, columns], or fewer rows. They count when `keep` says so."""

    def keep(self, rows: int) -> None:
        """Count so many rows more, written from the top of the room that was asked for last."""


class CountedRows:
    """See `Rows`. They are counted, and lost."""

    def __init__(self, width: int, dtype: str) -> None:
        import numpy as np

        self.rows = 0
        self._width = width
        self._dtype = dtype
        self._block = np.empty((0, width), dtype=dtype)

    def room(self, rows: int) -> "NDArray[Any]":
        import numpy as np

        if len(self._block) < rows:
            self._block = np.empty((rows, self._width), dtype=self._dtype)
        return self._block[:rows]

    def keep(self, rows: int) -> None:
        self.rows += rows


class HeldRows(CountedRows):
    """See `Rows`. Those of one block, until they are moved on; then there is room for another one."""

    def move_to(self, target: Rows) -> None:
        """Append them to `target`."""
        room = target.room(self.rows)
        room[:] = self._block[: len(room)]
        target.keep(self.rows)
        self.rows = 0


def write_columns(target: Rows, columns: "list[NDArray[Any]]") -> "NDArray[Any]":
    """Write columns of equal length below the rows that are there, to be kept; return what there was room for."""
    room = target.room(len(columns[0]))
    for index, column in enumerate(columns):
        room[:, index] = column[: len(room)]
    return room


def append_columns(target: Rows, columns: "list[NDArray[Any]]") -> None:
    """Write columns of equal length below the rows that are there, and keep them."""
    write_columns(target, columns)
    target.keep(len(columns[0]))
