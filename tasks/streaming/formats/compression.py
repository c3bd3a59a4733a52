"""gzip, bzip2 and Zstandard, told by the first bytes and not by the name: what a shard holds, piece by piece."""

import bz2
import io
import itertools
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tasks.errors import RowError

LONGEST_MAGIC = 10
AT_ONCE = 2**14  # compressed bytes; as gzip they hold 16 MiB at most


def decompress(uri: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the pieces as they are or, where they begin as compressed data does, what they hold.

    Raises RowError where that is damaged.
    """
    iterator = iter(pieces)
    head = b""
    for piece in iterator:
        head += piece
        if len(head) >= LONGEST_MAGIC:
            break
    whole = itertools.chain([head], iterator) if head else iterator
    if head.startswith(b"\x1f\x8b"):
        return _explained(uri, "gzip", _unpack(whole, lambda: zlib.decompressobj(wbits=31), padding=b"\0"))
    if head.startswith(b"BZh") and head[4:LONGEST_MAGIC] == b"1AY&SY":
        return _explained(uri, "bzip2", _unpack(whole, bz2.BZ2Decompressor))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _explained(uri, "Zstandard", _unpack_zstandard(whole))
    return whole


class _DamagedError(Exception):
    """Compressed data that is not whole."""


def _explained(uri: str, form: str, pieces: Iterator[bytes]) -> Iterator[bytes]:
    try:
        yield from pieces
    except _DamagedError as error:
        raise RowError(
            f"{uri} begins like {form}, but cannot be decompressed: {error}; write the shard again"
        ) from error


def _unpack(pieces: Iterable[bytes], begin: Callable[[], Any], padding: bytes = b"") -> Iterator[bytes]:
    """Yield what every member of a compressed file holds, one after the other; members may be padded."""
    member = None
    for piece in pieces:
        for start in range(0, len(piece), AT_ONCE):
            compressed = piece[start : start + AT_ONCE]
            while compressed:
                member = member or begin()
                try:
                    data = member.decompress(compressed)
                except (zlib.error, OSError) as error:
                    raise _DamagedError(error) from error
                yield data
                compressed = member.unused_data.lstrip(padding) if padding else member.unused_data
                if member.eof:
                    member = None
    if member is not None:
        raise _DamagedError("the compressed data ends early")


def _unpack_zstandard(pieces: Iterable[bytes]) -> Iterator[bytes]:
    import pyarrow

    with pyarrow.CompressedInputStream(pyarrow.PythonFile(_Pieces(pieces), mode="r"), "zstd") as stream:
        while True:
            try:
                data = stream.read(2**20)
            except OSError as error:
                raise _DamagedError(error) from error
            if not data:
                return
            yield data


class _Pieces(io.RawIOBase):
    """Pieces of bytes as a file, to be read once."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._left = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left = piece
        size = len(self._left) if size < 0 else size
        data, self._left = self._left[:size], self._left[size:]
        return data
