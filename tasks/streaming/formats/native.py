"""The kernel of `kernel.c`, where a C compiler was there at installation; it is built beside this module.

It decodes what almost all blocks are, to the same bits as the plain decoder of `csv.py`, or refuses a block. Where
it is not there, or is of another version than this module, the plain decoder reads everything, more slowly.
"""

import ctypes
import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.files import find_built
from tasks.streaming.formats.rows import Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

VERSION = 1  # as in kernel.c
LEAST_POWER, MOST_POWER = -342, 308  # as in kernel.c
DTYPES = ("float64", "float32")
TILE = 512  # numbers that are compared side by side, in the processor's nearest cache


class KernelError(Exception):
    """Why there is no kernel to decode with."""


class Kernel:
    """The functions of a kernel that was built at `path`. Raises KernelError where it cannot be used."""

    def __init__(self, path: Path) -> None:
        try:
            library = ctypes.CDLL(str(path))
            found = library.kernel_version()
            self._functions = {dtype: _declare(library[f"decode_{dtype}"]) for dtype in DTYPES}
        except (OSError, AttributeError) as error:
            raise KernelError(f"{path.name} cannot be loaded: {error}") from error
        if found != VERSION:
            raise KernelError(f"{path.name} is of version {found}, not {VERSION}; install shardline again")
        self._fives = _list_fives()
        self._find_ranges = {dtype: _find_ranges(library, dtype) for dtype in DTYPES}
        self._crc32_blocks = _find_crc32(library)

    def crc32(self, data: bytes | memoryview, crc: int) -> int:
        """Return `zlib.crc32(data, crc)`, in a fraction of its time where the processor multiplies without carries."""
        import numpy as np

        size = len(data) & -16
        if self._crc32_blocks is None or size < 64:
            return zlib.crc32(data, crc)
        array = np.frombuffer(data, dtype=np.uint8)
        return zlib.crc32(memoryview(data)[size:], self._crc32_blocks(array.ctypes.data, size, crc))

    def find_ranges(self, rows: "NDArray[Any]") -> "tuple[NDArray[Any], NDArray[Any], NDArray[Any]] | None":
        """Return the least and the most of each column, and whether it has a fraction: [columns] each.

        rows: [rows, columns] of finite floats, row-major. None from a kernel that was built before it could.
        """
        import numpy as np

        function = self._find_ranges[rows.dtype.name]
        if function is None:
            return None
        assert rows.flags.c_contiguous
        width = rows.shape[1]
        shape = (max(1, TILE // width), width)
        least, most, odd = (np.full(shape, start, rows.dtype) for start in (np.inf, -np.inf, 0))
        function(rows.ctypes.data, rows.size, least.size, least.ctypes.data, most.ctypes.data, odd.ctypes.data)
        return least.min(axis=0), most.max(axis=0), odd.max(axis=0) > 0

    def decode(self, data: bytes | memoryview, places: "NDArray[Any]", rows: "NDArray[Any]") -> int | None:
        """Decode a block of whole lines into the first of `rows`; return their number, or None where it is refused.

        places: [cells of a line] int32, which column of `rows` each one is, -1 where it is not read (`place_columns`)
        rows: [rows, columns] float64 or float32, row-major. What they hold after a refusal is undefined.
        """
        import numpy as np

        if data[-1] != ord("\n"):
            data = bytes(data) + b"\n"
        assert rows.flags.c_contiguous and places.dtype == np.int32 and int(places.max()) < rows.shape[1]
        block = np.frombuffer(data, dtype=np.uint8)
        count = self._functions[rows.dtype.name](
            block.ctypes.data, block.size, places.ctypes.data, places.size, rows.ctypes.data, *rows.shape,
            self._fives.ctypes.data,
        )  # fmt: skip
        return None if count < 0 else count


def find_kernel() -> Kernel | None:
    """Return the kernel, or None where the plain decoder does all."""
    return _look_for_kernel()[0]


def compute_crc32(data: bytes | memoryview, crc: int = 0) -> int:
    """Return the CRC-32 of bytes that follow those whose CRC-32 is `crc`."""
    kernel = find_kernel()
    return kernel.crc32(data, crc) if kernel else zlib.crc32(data, crc)


def describe_decoder() -> str:
    """Say in some words which decoder reads CSV here, and why where it is the slower one."""
    kernel, reason = _look_for_kernel()
    return "the kernel in C" if kernel else f"pyarrow, {reason}"


def decode_natively(
    kernel: Kernel, data: memoryview, names: tuple[str, ...], columns: tuple[str, ...], rows: Rows
) -> "NDArray[Any] | None":
    """Write `columns` of whole lines, whose own columns are `names`, to the room of `rows`, to be kept.

    Return what was written, [rows, columns]; None where the kernel refuses.
    """
    places = place_columns(names, columns)
    shortest = len(names) + len(columns)  # bytes of a line: an end for each cell, a digit for each that is read
    room = rows.room(len(data) // shortest + 1)
    count = kernel.decode(data, places, room)
    return None if count is None else room[:count]


@functools.cache
def _look_for_kernel() -> tuple[Kernel | None, str]:
    path = find_built(Path(__file__).with_name("kernel"))
    if path is None:
        return None, "slower: kernel.c was not built, for want of a C compiler"
    try:
        return Kernel(path), ""
    except KernelError as error:
        return None, f"slower: {error}"


def _declare(function: Any) -> Callable[..., int]:
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, integer, pointer, integer, pointer, integer, integer, pointer)
    function.restype = integer
    return function  # type: ignore[no-any-return]


def _find_crc32(library: ctypes.CDLL) -> Callable[..., int] | None:
    """Return the kernel's CRC-32, where it was built for a processor that has it, and runs on one."""
    try:
        function, is_fast = library["crc32_blocks"], library["crc32_is_fast"]
    except AttributeError:
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32)
    function.restype = ctypes.c_uint32
    return function if is_fast() else None


def _find_ranges(library: ctypes.CDLL, dtype: str) -> Callable[..., None] | None:
    """Return the kernel's `find_ranges`; None where it was built before it had one."""
    try:
        function = library[f"find_ranges_{dtype}"]
    except AttributeError:
        return None
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = (pointer, integer, integer, pointer, pointer, pointer)
    function.restype = None
    return function


@functools.lru_cache(maxsize=64)
def place_columns(names: tuple[str, ...], columns: tuple[str, ...]) -> "NDArray[Any]":
    """Where the cells of a line, whose columns are `names`, stand among `columns`: [names] int32, -1 for none."""
    import numpy as np

    places = np.full(len(names), -1, dtype=np.int32)
    for place, column in enumerate(columns):
        places[names.index(column)] = place
    places.flags.writeable = False
    return places


def _list_fives() -> "NDArray[Any]":
    """The first 128 bits of 5**q for each power that the kernel knows, rounded up where q < 0: [q, 2] uint64."""
    import numpy as np

    return np.array([_cut_five(q) for q in range(LEAST_POWER, MOST_POWER + 1)], dtype=np.uint64)


def _cut_five(q: int) -> tuple[int, int]:
    power: int = 5 ** abs(q)
    if q < 0:
        length = (power - 1).bit_length()
        power = (1 << (length + 127 if q >= -27 else 2 * length + 128)) // power + 1
    else:
        power <<= 128
    return divmod(power >> max(0, power.bit_length() - 128), 2**64)
