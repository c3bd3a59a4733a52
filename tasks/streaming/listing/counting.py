"""Rows by reading: for shards without metadata; and the MD5 that stands for the ETag where a scheme has none."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tasks.errors import RowError
from tasks.streaming.formats import parquet
from tasks.streaming.formats.compression import decompress
from tasks.streaming.formats.contract import BYTE_ORDER_MARK
from tasks.streaming.formats.csv import LONGEST_LINE, find_first_line
from tasks.streaming.objects.ranges import ObjectFile
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.store import Listed, Store
from tasks.streaming.objects.transfer import read_object
from tasks.streaming.progress import ProgressBar, watch

FIRST_BYTES = 2**16  # enough for most header lines
READERS = 8


def count_rows(
    store: Store, listed: list[Listed], *, has_header: bool, limit: int | None, retry: RetryPolicy
) -> list[tuple[Listed, int]]:
    """Return each shard, with its ETag, and its number of rows: lines that are not empty, less the header line.

    With a limit, reading ends after so many shards with rows. Of Parquet shards only the footer is read.
    """

    progress = ProgressBar("counting rows", sum(entry.size for entry in listed))

    def count(entry: Listed) -> tuple[Listed, int]:
        if parquet.is_parquet(entry.uri):
            return entry, parquet.read_footer(entry.uri, ObjectFile(store, entry, retry))[1]
        digest = hashlib.md5(usedforsecurity=False)
        pieces = _hash(read_object(store, entry, retry), digest)
        lines = _count_lines(entry.uri, watch(pieces, progress))
        return Listed(entry.uri, entry.size, entry.etag or digest.hexdigest()), max(0, lines - has_header)

    with progress:
        if limit is None:
            with ThreadPoolExecutor(READERS, thread_name_prefix="shardline-count") as pool:
                return list(pool.map(count, listed))
        found: list[tuple[Listed, int]] = []
        for entry in listed:
            found.append(count(entry))
            limit -= found[-1][1] > 0
            if not limit:
                break
        return found


def read_first_line(store: Store, entry: Listed, retry: RetryPolicy) -> bytes:
    """Return the first line of a shard that is not empty; b"" where there is none.

    No more of the shard is read than that takes, 64 KiB at first. Raises RowError where the line is without an end.
    """
    end = FIRST_BYTES
    while True:
        head = b""
        for data in _without_ending(decompress(entry.uri, read_object(store, entry, retry, end=end))):
            head = (head + data)[find_first_line(head + data) :]
            if b"\n" in head:
                return head[: head.index(b"\n") + 1]
            if len(head) > LONGEST_LINE:
                raise RowError(f"{entry.uri}, line 1: no line end in {len(head)} bytes; is this CSV?")
        if end >= entry.size:
            return head
        end *= 16


def hash_content(store: Store, entry: Listed, retry: RetryPolicy) -> str:
    """Return the MD5 (hex) of the object, for schemes that have no ETag."""
    digest = hashlib.md5(usedforsecurity=False)
    for _ in _hash(read_object(store, entry, retry), digest):
        pass
    return digest.hexdigest()


def _without_ending(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces as far as they go: the first bytes of a gzip file are no whole gzip file."""
    try:
        yield from pieces
    except RowError:
        return


def _hash(pieces: Iterator[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for data in pieces:
        digest.update(data)
        yield data


def _count_lines(uri: str, pieces: Iterator[bytes]) -> int:
    """Count the lines that are not empty; a last line without a line end counts."""
    lines = 0
    before, mark = b"\n", BYTE_ORDER_MARK
    for data in decompress(uri, pieces):
        data, mark = data.removeprefix(mark).replace(b"\r", b""), b""
        lines += data.count(b"\n") - _count_pairs(before, data)
        before = data[-1:] or before
    return lines + (before != b"\n")


def _count_pairs(before: bytes, data: bytes) -> int:
    """Count the line ends that follow a line end: those of empty lines."""
    pairs = int(before == b"\n" and data[:1] == b"\n")
    at = data.find(b"\n\n")
    while at >= 0:
        pairs += 1
        at = data.find(b"\n\n", at + 1)
    return pairs
