"""Shards that are loaded ahead of need, and let go when the last batch that was planned with them is done."""

import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from tasks.streaming.loading import Loaded, Loading
from tasks.streaming.manifest import Shard
from tasks.streaming.objects.retrying import ClosedError
from tasks.streaming.planning import BatchPlan
from tasks.streaming.stored import StoredRows

PLANS_AT_ONCE = 50  # how far the look ahead grows with each batch, so that the first one does not wait for thousands


class Prefetcher:
    """Loads what `plans` need on `threads` threads.

    ahead: plans whose shards are loaded ahead of the one in hand
    held_bytes: besides, loading goes on ahead while the shards held, decoded, are fewer bytes than this
    """

    def __init__(
        self,
        loading: Loading,
        shards: Sequence[Shard],
        plans: Iterator[BatchPlan],
        *,
        ahead: int,
        held_bytes: int,
        threads: int,
    ) -> None:
        self.closed = threading.Event()
        self._loading = loading
        self._shards = shards
        self._plans = plans
        self._ahead = ahead
        self._held_rows = held_bytes // loading.row_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="shardline-load")
        self._futures: dict[int, Future[Loaded]] = {}
        self._uses: Counter[int] = Counter()  # of each shard, by plans that were taken up and not yet released
        self._rows = 0
        self._new: set[int] = set()  # loaded for a batch that nobody has waited for yet

    def plans(self) -> Iterator[BatchPlan]:
        """Yield the plans in order, while shards for later ones are being loaded. Each is to be released."""
        upcoming: deque[BatchPlan] = deque()
        planned = 0
        while True:
            for _ in range(self._ahead + PLANS_AT_ONCE):
                if len(upcoming) > self._ahead and not self._may_hold_more(planned):
                    break
                plan = next(self._plans, None)
                if plan is None:
                    break
                self._take_up(plan)
                upcoming.append(plan)
                planned += plan.rows
            if not upcoming:
                return
            planned -= upcoming[0].rows
            yield upcoming.popleft()

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
        self._uses.subtract(plan.shards)
        for index in plan.shards:
            if not self._uses[index]:
                del self._uses[index], self._futures[index]
                self._rows -= self._shards[index].rows

    def close(self) -> None:
        """Stop loading, and wait until no thread is left."""
        self.closed.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._futures.clear()

    def _may_hold_more(self, planned: int) -> bool:
        return max(planned, self._rows) < self._held_rows and len(self._futures) < len(self._shards)

    def _take_up(self, plan: BatchPlan) -> None:
        for index in plan.shards:
            if index not in self._futures:
                self._futures[index] = self._pool.submit(self._loading.load, self._shards[index], self.closed)
                self._rows += self._shards[index].rows
                self._new.add(index)
        self._uses.update(plan.shards)

    def _wait_for(self, future: "Future[Loaded]") -> Loaded:
        while not self.closed.is_set():
            try:
                return future.result(timeout=0.1)
            except TimeoutError:
                if future.done():
                    raise
        raise ClosedError
