"""Shards that are loaded ahead of need, and let go when the last batch that was planned with them is done."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tasks.streaming.loading import Loaded, Loading
from tasks.streaming.lookahead import Lookahead
from tasks.streaming.manifest import Shard
from tasks.streaming.objects.retrying import ClosedError
from tasks.streaming.planning import BatchPlan
from tasks.streaming.stored import StoredRows


class Prefetcher:
    """Loads on `threads` threads what `lookahead` says."""

    def __init__(self, loading: Loading, shards: Sequence[Shard], lookahead: Lookahead, *, threads: int) -> None:
        self.closed = threading.Event()
        self._loading = loading
        self._shards = shards
        self._lookahead = lookahead
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shardline-load")
        self._futures: dict[int, Future[Loaded]] = {}
        self._new: set[int] = set()  # loaded for a batch that nobody has waited for yet

    def plans(self) -> Iterator[BatchPlan]:
        """Yield the plans in order, while shards for later ones are being loaded. Each is to be released."""
        return self._lookahead.plans(self._begin)

    def wait_for(self, plan: BatchPlan) -> tuple[float, float]:
        """Wait for the plan's shards; return seconds of fetching and decoding for those not waited for before."""
        fetch = decode = 0.0
        for index in plan.shards:
            loaded = self._wait_for(self._futures[index])
            if index in self._new:
                self._new.discard(index)
                fetch += loaded.fetch_seconds
                decode += loaded.decode_seconds
        return fetch, decode

    def rows(self, index: int) -> StoredRows:
        """Return the rows of a shard that was waited for."""
        return self._futures[index].result().rows

    def reload(self, index: int, fault: str) -> StoredRows:
        """Return the rows of a shard whose file in the cache was found damaged, fetched anew."""
        loaded = self._loading.reload(self._shards[index], fault, self.closed)
        self._futures[index] = future = Future[Loaded]()
        future.set_result(loaded)
        return loaded.rows

    def release(self, plan: BatchPlan) -> None:
        """Let go of shards that no other plan that was taken up needs."""
        for index in self._lookahead.release(plan):
            del self._futures[index]

    def close(self) -> None:
        """Stop loading, and wait until no thread is left."""
        self.closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._futures.clear()

    def _begin(self, index: int) -> None:
        self._futures[index] = self._pool.submit(self._loading.load, self._shards[index], self.closed)
        self._new.add(index)

    def _wait_for(self, future: "Future[Loaded]") -> Loaded:
        while not self.closed.is_set():
            try:
                return future.result(timeout=0.1)
            except TimeoutError:
                if future.done():
                    raise
        raise ClosedError
