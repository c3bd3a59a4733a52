"""One shard, from the store to decoded rows: nothing of it is handed out before all of it was verified."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from tasks.errors import RowCountError
from tasks.streaming.cache import Cache
from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.diagnosing import BadLine, decode_csv
from tasks.streaming.formats.parquet import decode_parquet, is_parquet
from tasks.streaming.formats.rows import Rows
from tasks.streaming.handover import HandOver
from tasks.streaming.manifest import Shard
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.store import Listed, Store
from tasks.streaming.objects.transfer import read_object
from tasks.streaming.splitting import LARGE, Helpers, cut_ranges, decode_in_blocks, read_in_ranges
from tasks.streaming.staging import MemoryStaging, PagePool, Staging, explain_full_disk, stage_in_temporary_file
from tasks.streaming.stored import ArrayRows, FileRows, StoredRows

if TYPE_CHECKING:
    from numpy.typing import NDArray

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
PIECES_AHEAD = 8  # of a large shard, fetched and not yet decoded, besides the ranges on their way


@dataclass(frozen=True)
class Loaded:
    """Decoded rows of a shard, and what they took (thread-seconds)."""

    rows: StoredRows
    fetch_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Loading:
    """How the shards of one data set are loaded.

    large: bytes of decoded rows above which a shard is staged in a file
    checks: by URI, which digest the content of each shard that was loaded had, or that it was in the cache
    fetchers, decoders: who helps with single large shards
    """

    store: Store
    contract: Contract
    retry: RetryPolicy
    dtype: str
    large: int
    cache: Cache | None = None
    pages: PagePool = field(default_factory=lambda: PagePool(kept=1))
    checks: dict[str, str] = field(default_factory=dict)
    fetchers: Helpers = field(default_factory=lambda: Helpers(CORES))
    decoders: Helpers = field(default_factory=lambda: Helpers(CORES))

    @property
    def row_bytes(self) -> int:
        """Bytes of a decoded row."""
        import numpy as np

        return len(self.contract.columns) * np.dtype(self.dtype).itemsize

    def load(self, shard: Shard, stop: threading.Event) -> Loaded:
        """Return the shard's rows, from the cache or fetched, decoded and verified. Raises ShardError, ClosedError."""
        watch = _Stopwatch()
        rows: StoredRows | None = self._load_through_cache(self.cache, shard, stop, watch) if self.cache else None
        if rows is None:
            rows = ArrayRows(self._load_into_staging(shard, stop, watch))
        self.checks.setdefault(shard.uri, "cache")
        return Loaded(rows, watch.inside, time.perf_counter() - watch.began - watch.inside)

    def reload(self, shard: Shard, fault: str, stop: threading.Event) -> Loaded:
        """Return the shard's rows without the cache, whose file of it was found damaged and goes."""
        if self.cache:
            self.cache.discard(shard, fault)
        return replace(self, cache=None).load(shard, stop)

    def _load_through_cache(
        self, cache: Cache, shard: Shard, stop: threading.Event, watch: "_Stopwatch"
    ) -> FileRows | None:
        rows = cache.open(shard)
        if rows is not None:
            return rows
        try:
            with cache.reserve(shard, stop) as staging:
                if staging is not None:
                    self._fill(staging, shard, stop, watch)
                    cache.store(shard, staging)
        except OSError as error:  # of the cache's disk: the store translates its own
            cache.give_up(error)
            return None
        return cache.open(shard)

    def _load_into_staging(self, shard: Shard, stop: threading.Event, watch: "_Stopwatch") -> "NDArray[Any]":
        width = len(self.contract.columns)
        if shard.rows * self.row_bytes <= self.large:
            return self._fill(MemoryStaging(shard.rows, width, self.dtype, self.pages), shard, stop, watch)
        staging = stage_in_temporary_file(width, self.dtype)
        try:
            return self._fill(staging, shard, stop, watch)
        except OSError as error:
            raise explain_full_disk(error) from error
        finally:
            staging.close()

    def _fill(self, staging: Staging, shard: Shard, stop: threading.Event, watch: "_Stopwatch") -> "NDArray[Any]":
        for _ in self.decode(shard, staging, stop, watch):
            pass  # bad lines were reported when the shards were surveyed
        check_count(shard, staging.rows)
        return staging.finish()

    def decode(
        self, shard: Shard, rows: Rows, stop: threading.Event, watch: "_Stopwatch | None" = None
    ) -> Iterator[BadLine]:
        """Write the shard's rows to `rows`; yield bad lines where they are to be dropped, else raise RowError.

        What was written counts only once the iteration has ended without an error.
        """
        watch = watch or _Stopwatch()
        if shard.size >= LARGE:
            return self._decode_large(shard, rows, stop, watch)
        decode = decode_parquet if is_parquet(shard.uri) else decode_csv
        return decode(shard.uri, watch.time(self.fetch(shard, stop)), self.contract, self.dtype, rows)

    def _decode_large(self, shard: Shard, rows: Rows, stop: threading.Event, watch: "_Stopwatch") -> Iterator[BadLine]:
        done = threading.Event()
        fetched = HandOver(self.fetch(shard, done), PIECES_AHEAD, done, "shardline-fetch")
        fetched.start()
        try:
            pieces = watch.time(fetched.take_until(stop))
            if is_parquet(shard.uri):
                yield from decode_parquet(shard.uri, pieces, self.contract, self.dtype, rows)
            else:
                helpers = self.decoders
                yield from decode_in_blocks(shard.uri, pieces, self.contract, self.dtype, rows, helpers, stop)
        finally:
            done.set()
            fetched.join()

    def fetch(self, shard: Shard, stop: threading.Event) -> Iterator[bytes]:
        """Yield the shard's bytes, see `read_object`; those of a large one come over several connections."""
        listed, tell = Listed(shard.uri, shard.size, shard.etag), partial(self.checks.__setitem__, shard.uri)
        if self._is_split(shard):
            return read_in_ranges(self.store, listed, self.retry, self.fetchers, stop=stop, tell=tell)
        return read_object(self.store, listed, self.retry, stop=stop, tell=tell)

    def count_requests(self, shard: Shard) -> int:
        """Return how many requests fetching the shard takes where none fails."""
        return len(cut_ranges(shard.size)) if self._is_split(shard) else 1

    def _is_split(self, shard: Shard) -> bool:
        return shard.size >= LARGE and self.store.by_ranges


def check_count(shard: Shard, rows: int) -> None:
    """Raise RowCountError where a shard turned out to have other than the stated number of rows."""
    if rows != shard.rows:
        raise RowCountError(
            f"{shard.uri}: {rows} rows, but {shard.rows} are stated for it: "
            "correct the metadata, or remove it so that the shards are counted by reading"
        )


class _Stopwatch:
    """Seconds since it was made, and those spent inside the iterators that it times."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.inside = 0.0

    def time(self, iterator: Iterator[bytes]) -> Iterator[bytes]:
        while True:
            began = time.perf_counter()
            piece = next(iterator, None)
            self.inside += time.perf_counter() - began
            if piece is None:
                return
            yield piece
