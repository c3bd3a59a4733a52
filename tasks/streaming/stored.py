"""Decoded rows of a shard where they lie, in memory or in a file, to be copied into batches.

A file of the cache is read, not mapped: one that is cut short meanwhile is an error that can be handled, not a SIGBUS,
and reading takes no longer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tasks.streaming.formats.native import compute_crc32

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTES_AT_ONCE = 2**19  # fit the processor's cache


class DamagedError(Exception):
    """A file whose bytes are not those that were stored."""


class StoredRows(Protocol):
    """Rows of one shard."""

    def copy(self, start: int, stop: int, target: "NDArray[Any]") -> None:
        """Copy rows [start, stop) to a contiguous [stop - start, columns]. Raises DamagedError, with some copied."""


@dataclass(frozen=True)
class ArrayRows:
    """See `StoredRows`: [rows, columns] in memory, or in a file that nobody else can write to."""

    array: "NDArray[Any]"

    def copy(self, start: int, stop: int, target: "NDArray[Any]") -> None:
        target[:] = self.array[start:stop]


@dataclass(frozen=True)
class FileRows:
    """See `StoredRows`: rows of `row_bytes` in the file at `path`, from `offset` on. It is open only while it is read.

    is_whole: asked after each copy whether the file still is what was stored
    """

    path: Path
    offset: int
    row_bytes: int
    is_whole: Callable[[FileIO], bool]

    def copy(self, start: int, stop: int, target: "NDArray[Any]") -> None:
        room = target.reshape(-1).view("uint8")[: (stop - start) * self.row_bytes].data
        try:
            with self.path.open("rb", buffering=0) as file:
                found = read_into(file, self.offset + start * self.row_bytes, room)
                if found < len(room) or not self.is_whole(file):
                    raise DamagedError("it was written to, or cut short, while it was in use")
        except OSError as error:
            raise DamagedError(str(error)) from error


def read_into(file: FileIO, offset: int, target: memoryview) -> int:
    """Fill `target` with a file's bytes from `offset` on, and return how many there were."""
    file.seek(offset)
    done = 0
    while done < len(target) and (count := file.readinto(target[done:])):
        done += count
    return done


def compute_crc(file: FileIO, offset: int) -> int:
    """Return the CRC-32 of a file's bytes from `offset` on."""
    crc, room = 0, memoryview(bytearray(BYTES_AT_ONCE))
    while count := read_into(file, offset, room):
        crc = compute_crc32(room[:count], crc)
        offset += count
    return crc
