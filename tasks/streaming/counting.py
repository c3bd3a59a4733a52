"""Rows by reading: for shards without metadata, and the MD5 for schemes without ETags."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tasks.streaming.decoding import decompress
from tasks.streaming.patience import Patience
from tasks.streaming.stores import Listed, Store
from tasks.streaming.transfer import read_object

FIRST_BYTES = 2**16  # enough for any header line
READERS = 8


def count_rows(
    store: Store, listed: list[Listed], header: tuple[str, ...] | None, patience: Patience, *, limit: int | None
) -> list[tuple[Listed, int]]:
    """Each shard with its number of rows (lines that are not empty, less the header line).

    Where the scheme has no ETag, the MD5 of what was read takes its place. With a limit, reading ends after so many
    shards with rows.
    """

    def count(entry: Listed) -> tuple[Listed, int]:
        digest = hashlib.md5(usedforsecurity=False)
        rows = _count_lines(entry, _hashed(read_object(store, entry, patience), digest)) if entry.size else 0
        etag = entry.etag or digest.hexdigest()
        return Listed(entry.uri, entry.size, etag), max(0, rows - (header is not None))

    found: list[tuple[Listed, int]] = []
    with ThreadPoolExecutor(READERS, thread_name_prefix="shardline-count") as pool:
        if limit is None:
            return list(pool.map(count, listed))
        for entry in listed:
            if sum(1 for _, rows in found if rows) < limit:
                found.append(count(entry))
    return found


def first_line(store: Store, entry: Listed, patience: Patience) -> bytes:
    """The first line of a shard, of which 64 KiB are read; b"" where it is empty."""
    pieces = read_object(store, entry, patience, first=FIRST_BYTES)
    head = b""
    try:
        for data in decompress(entry.uri, pieces):
            head += data
            if b"\n" in data:
                break
    except Exception:
        if not head:
            raise
    return head[: head.find(b"\n") + 1] or head


def hash_content(store: Store, entry: Listed, patience: Patience) -> str:
    """The MD5 (hex) of the object, for schemes that have no ETag."""
    digest = hashlib.md5(usedforsecurity=False)
    for _ in _hashed(read_object(store, entry, patience), digest):
        pass
    return digest.hexdigest()


def _hashed(pieces: Iterator[bytes], digest: "hashlib._Hash") -> Iterator[bytes]:
    for data in pieces:
        digest.update(data)
        yield data


def _count_lines(entry: Listed, pieces: Iterator[bytes]) -> int:
    """Lines that are not empty; a last line without a line end counts."""
    lines = 0
    before = b"\n"
    for data in decompress(entry.uri, pieces):
        joined = before + data.replace(b"\r", b"")
        lines += data.count(b"\n") - joined.count(b"\n\n")
        before = joined[-1:]
    return lines + (before != b"\n")
