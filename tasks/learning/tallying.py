"""The sums of `tally.c`, where a C compiler was there at installation; it is built beside this module."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.files import find_built
from tasks.learning.edges import Grid

TILE = 128  # numbers that are worked on side by side, at least a row's


class Tally:
    """Adds up columns by `function`, and counts their values in the cells of these grids, one for each."""

    def __init__(self, function: Callable[..., None], grids: Sequence[Grid], origin: Tensor) -> None:
        self._function, self._columns = function, len(grids)
        self._rows = max(1, TILE // len(grids))
        stride = max(len(grid.bins) for grid in grids)
        measures = [
            [1 / grid.width for grid in grids],
            origin.tolist(),
            [float(grid.first - 1) for grid in grids],
            [float(grid.first + grid.cells) for grid in grids],
        ]
        first = torch.arange(len(grids), dtype=torch.int32) * stride
        self._measures = torch.tensor(measures, dtype=torch.float64).tile(1, self._rows)
        self._first = first.tile(self._rows)

    def add_up(self, rows: Tensor, size: int, cells: Tensor) -> Tensor:
        """Return the sums of slices of `size` rows, as `Histograms.measure` does, and count all values.

        rows: [rows, columns] in float64, finite
        cells: [columns, cells] in int64, raised by how many values are in each
        """
        rows, tile = rows.contiguous(), self._first.numel()
        sums = torch.empty(-(-len(rows) // size), 5, self._columns, dtype=torch.float64)
        room = torch.empty(3, tile, dtype=torch.float64), torch.empty(tile, dtype=torch.int32)
        arrays = (self._measures, self._first, *room, sums, cells)
        assert cells.is_contiguous() and rows.dtype == torch.float64
        self._function(rows.data_ptr(), *rows.shape, size, tile, *(each.data_ptr() for each in arrays))
        return sums


@functools.cache
def find_function() -> Callable[..., None] | None:
    """Return the function in C, or None where it was not built."""
    path = find_built(Path(__file__).with_name("tally"))
    return declare(path) if path else None


def declare(path: Path) -> Callable[..., None]:
    """Return the function of a library."""
    function: Any = ctypes.CDLL(str(path)).tally_slices
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, *[integer] * 4, *[pointer] * 6)
    function.restype = None
    return function  # type: ignore[no-any-return]
