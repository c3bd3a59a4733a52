"""One large shard on many cores: ranges of it are fetched side by side, and blocks decoded side by side, in order.

Each has one range and one block in hand in any case, and more while `Helpers` has some left: those are shared by all
shards that are being loaded, so that memory does not grow with their number. What comes out, and which error, is what
one thread would make of it.
"""

import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

from tasks.streaming.formats.contract import Contract
from tasks.streaming.formats.csv import Block, cut_blocks
from tasks.streaming.formats.diagnosing import BadLine, decode_block
from tasks.streaming.formats.rows import HeldRows, Rows
from tasks.streaming.objects.retrying import Attempts, ClosedError, RetryPolicy
from tasks.streaming.objects.store import Listed, Store
from tasks.streaming.objects.transfer import ContentCheck, read_range

T = TypeVar("T")
R = TypeVar("R")
LARGE = 2**26  # bytes of a shard from which on it is split
RANGE = 2**23
LOOKS_UP = 0.1  # seconds between two looks at whether the stream was closed


class Helpers:
    """So many threads at most, besides those that load shards."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._free = threading.Semaphore(count)

    def map(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        name: str,
        stop: threading.Event,
        abandoned: threading.Event | None = None,
    ) -> Generator[R, None, None]:
        """Yield function(item) of each item, in order. Raises ClosedError soon after `stop` is set.

        One at a time is worked on in any case, and one more for each helper that is free. A result is let go, and
        counts no more, when the next one is asked for. An error of `items` is raised behind what came before it.
        `abandoned` is set when no result is wanted any more: what is being worked on is waited for.
        """
        begun: deque[Future[R]] = deque()
        errors: list[Exception] = []
        with ThreadPoolExecutor(1 + self._count, thread_name_prefix=name) as pool:
            try:
                for item in _postpone_errors(items, errors):
                    while begun and not self._free.acquire(blocking=False):
                        yield _wait_for(begun[0], stop)
                        self._let_go(begun)
                    begun.append(pool.submit(function, item))
                while begun:
                    yield _wait_for(begun[0], stop)
                    self._let_go(begun)
            finally:
                if abandoned is not None:
                    abandoned.set()
                for future in begun:
                    future.cancel()
                while begun:
                    self._let_go(begun)
        if errors:
            raise errors[0]

    def _let_go(self, begun: "deque[Future[R]]") -> None:
        begun.popleft()
        if begun:
            self._free.release()


def _postpone_errors(items: Iterable[T], errors: list[Exception]) -> Iterator[T]:
    """Yield the items; an error of theirs ends them, and is noted."""
    try:
        yield from items
    except Exception as error:
        errors.append(error)


def _wait_for(future: "Future[R]", stop: threading.Event) -> R:
    while not stop.is_set():
        try:
            return future.result(timeout=LOOKS_UP)
        except TimeoutError:
            if future.done():
                raise
    raise ClosedError


def cut_ranges(size: int) -> range:
    """Return where the ranges begin in which an object of `size` bytes is asked for."""
    return range(0, size, RANGE)


def read_in_ranges(
    store: Store,
    listed: Listed,
    retry: RetryPolicy,
    helpers: Helpers,
    *,
    stop: threading.Event,
    tell: Callable[[str], None] | None = None,
) -> Generator[bytes, None, None]:
    """Yield the object's bytes as `read_object` does, under the one deadline, several ranges being on their way.

    Closing the generator ends their threads.
    """
    abandoned = threading.Event()
    attempts = Attempts(listed.uri, retry.seconds_for(listed.size), retry.stall_seconds, abandoned)
    check = ContentCheck(listed)

    def fetch(begin: int) -> list[bytes]:
        end = min(begin + RANGE, listed.size)
        return list(read_range(store, listed, retry, attempts, begin, end, abandoned, check))

    with closing(helpers.map(fetch, cut_ranges(listed.size), "shardline-range", stop, abandoned)) as ranges:
        for piece in itertools.chain.from_iterable(ranges):
            check.update(piece)
            with attempts.suspended():
                yield piece
    check.finish(tell)


def decode_in_blocks(
    uri: str,
    pieces: Iterable[bytes],
    contract: Contract,
    dtype: str,
    rows: Rows,
    helpers: Helpers,
    stop: threading.Event,
) -> Iterator[BadLine]:
    """Write all rows to `rows` and yield the bad lines, as `decode_csv` does, several blocks being decoded at once."""
    free: deque[HeldRows] = deque()

    def decode(block: Block) -> tuple[HeldRows, list[BadLine]]:
        try:
            held = free.popleft()
        except IndexError:
            held = HeldRows(len(contract.columns), dtype)
        return held, decode_block(block, contract, dtype, held)

    blocks = cut_blocks(uri, pieces, contract)
    with closing(helpers.map(decode, blocks, "shardline-decode", stop)) as decoded:
        for held, bad in decoded:
            held.move_to(rows)
            free.append(held)
            yield from bad
