"""Tables of every shape, added up by a `tally.so` in which sanitizers look on; prints how many.

python -m tests.fuzz_tallying SECONDS LIBRARY
"""

import ctypes
import sys
import time

import numpy as np


def main() -> None:
    seconds, function = float(sys.argv[1]), ctypes.CDLL(sys.argv[2]).tally_slices
    draw, began, turns = np.random.default_rng(), time.monotonic(), 0
    while time.monotonic() - began < seconds:
        count, columns, size = (int(draw.integers(1, most)) for most in (500, 40, 200))
        tile, stride = columns * int(draw.integers(1, 20)), 12
        rows = draw.normal(size=(count, columns)) * 10.0 ** draw.integers(-300, 300, columns)
        low = np.tile(draw.integers(-(2**50), 2**50, columns), tile // columns)
        measures = np.array(
            [np.full(tile, 2.0 ** draw.integers(-20, 20)), draw.normal(size=tile), low, low + stride - 1]
        )
        first = np.tile(np.arange(columns) * stride, tile // columns).astype(np.int32)
        room, room_of_cells = np.empty((3, tile)), np.empty(tile, np.int32)
        sums, cells = np.empty((-(-count // size), 5, columns)), np.zeros((columns, stride), np.int64)
        arrays = (measures, first, room, room_of_cells, sums, cells)
        numbers = (ctypes.c_int64(number) for number in (count, columns, size, tile))
        function(address(rows), *numbers, *map(address, arrays))
        assert (cells.sum(axis=1) == count).all()
        assert np.array_equal(sums[:, 3].min(axis=0), (rows * measures[0, :columns]).min(axis=0))
        turns += 1
    print(turns)


def address(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


if __name__ == "__main__":
    main()
