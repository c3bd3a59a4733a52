"""Between which numbers those of each column lie, and whether they are whole: one look at decoded rows.

By the kernel, where it is there, without a copy of them; else by NumPy, in several passes.
"""

from typing import TYPE_CHECKING, Any

from tasks.streaming.formats.native import find_kernel

if TYPE_CHECKING:
    from numpy import ufunc
    from numpy.typing import NDArray

TILE = 64  # rows that NumPy takes at a time: one by itself is short for the processor's vectors


def find_ranges(rows: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any], NDArray[Any]]":
    """Return the least and the most of each column, and whether it has a fraction: [columns] each.

    rows: [rows, columns] of finite floats, row-major, one at least
    """
    import numpy as np

    kernel = find_kernel()
    found = kernel.find_ranges(rows) if kernel else None
    if found is None:
        found = _reduce(np.minimum, rows), _reduce(np.maximum, rows), _reduce(np.logical_or, np.rint(rows) != rows)
    return found


def _reduce(function: "ufunc", rows: "NDArray[Any]") -> "NDArray[Any]":
    """Return `function.reduce(rows, axis=0)`, of many rows at a time."""
    import numpy as np

    tiles = len(rows) // TILE
    tail = rows[tiles * TILE :]
    if tiles:
        tile = function.reduce(rows[: tiles * TILE].reshape(tiles, -1), axis=0)
        tail = np.concatenate([tile.reshape(TILE, -1), tail])
    reduced: NDArray[Any] = function.reduce(tail, axis=0)
    return reduced
