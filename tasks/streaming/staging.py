"""Where the decoded rows of a shard lie until its last batch is assembled: row-major, in memory or in a file.

Small shards are held in anonymous memory. Larger ones are written to a file that is mapped once it is whole, so that
memory does not grow with the shard. Files are written, not filled through a map: a full disk is then an error that can
be handled, not a SIGBUS.
"""

import mmap
import tempfile
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Protocol

from tasks.errors import ConfigurationError
from tasks.streaming.formats.native import compute_crc32
from tasks.streaming.formats.rows import CountedRows, Rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pages = mmap.mmap | memoryview
MakePages = Callable[[int], Pages]

SMALL = 2**20  # bytes below which pages of their own are not worth it
HUGE_PAGE = 2**21


class PagePool:
    """Room for rows in pages of its own, taken again for the next rows as soon as nobody refers to the last ones.

    malloc would keep pages for later, so that memory creeps with every shard; new pages are zeroed by the system, which
    takes as long as filling them. At most `kept` pieces wait to be taken again.

    make: returns a buffer of so many bytes
    """

    def __init__(self, kept: int, make: MakePages | None = None) -> None:
        self._free: deque[Pages] = deque(maxlen=kept)
        self._make = make or map_pages

    def allocate(self, rows: int, width: int, dtype: str) -> "NDArray[Any]":
        """Return an array [rows, width] of any numbers."""
        import numpy as np

        count = rows * width
        size = count * np.dtype(dtype).itemsize
        if size < SMALL:
            return np.empty((rows, width), dtype=dtype)
        pages = self._take(-(-size // HUGE_PAGE) * HUGE_PAGE)
        array = np.frombuffer(pages, dtype=dtype, count=count).reshape(rows, width)
        # A tensor made from this array, and every view of the tensor, refers to the array as long as it lives.
        weakref.finalize(array, self._free.append, pages).atexit = False
        return array

    def _take(self, size: int) -> Pages:
        while True:
            try:
                pages = self._free.popleft()
            except IndexError:
                break
            if len(pages) == size:
                return pages
        return self._make(size)


def map_pages(size: int) -> mmap.mmap:
    """Return so many bytes of anonymous memory, in huge pages where there are any."""
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without huge pages
            pages.madvise(mmap.MADV_HUGEPAGE)
    return pages


class Staging(Rows, Protocol):
    """Room for the rows of one shard."""

    def finish(self) -> "NDArray[Any]":
        """Return all rows, as [rows, columns]."""

    def close(self) -> None:
        """Let go of what `finish` does not need."""


class MemoryStaging:
    """See `Staging`. rows_expected: more than these are counted, but not kept."""

    def __init__(self, rows_expected: int, width: int, dtype: str, pages: PagePool) -> None:
        self.rows = 0
        self._array = pages.allocate(rows_expected, width, dtype)

    def room(self, rows: int) -> "NDArray[Any]":
        return self._array[self.rows : self.rows + rows]

    def keep(self, rows: int) -> None:
        self.rows += rows

    def finish(self) -> "NDArray[Any]":
        return self._array

    def close(self) -> None:
        pass


class FileStaging(CountedRows):
    """See `Staging`. The rows are written to `file` from `offset` on; `checksum` is the CRC-32 of their bytes."""

    def __init__(self, file: IO[bytes], width: int, dtype: str, *, offset: int = 0) -> None:
        super().__init__(width, dtype)
        self.checksum = 0
        self.file = file
        self._offset = offset
        file.seek(offset)

    def keep(self, rows: int) -> None:
        super().keep(rows)
        kept = self._block[:rows].reshape(-1).view("uint8").data
        self.checksum = compute_crc32(kept, self.checksum)
        while kept:  # a disk that is nearly full takes a part, and says so at the next write only
            kept = kept[self.file.write(kept) :]

    def finish(self) -> "NDArray[Any]":
        self.file.flush()
        return map_rows(self.file, self.rows, self._width, self._dtype, self._offset)

    def close(self) -> None:
        self.file.close()


def stage_in_temporary_file(width: int, dtype: str) -> FileStaging:
    """Return staging in a file without a name, in the folder for temporary files: gone when nobody maps it."""
    return FileStaging(tempfile.TemporaryFile(prefix="shardline-", buffering=0), width, dtype)


def explain_full_disk(error: OSError) -> ConfigurationError:
    """Return the error for a shard that is too large for memory and for the folder of temporary files."""
    return ConfigurationError(
        f"A shard could not be staged in {tempfile.gettempdir()}: {error}; make room there, or set TMPDIR"
    )


def map_rows(file: IO[bytes], rows: int, width: int, dtype: str, offset: int) -> "NDArray[Any]":
    """Map rows that lie in a file, read-only, as [rows, columns]."""
    import numpy as np

    if rows == 0:
        return np.empty((0, width), dtype=dtype)
    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=(rows, width))
