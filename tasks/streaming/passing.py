"""Shards gone through once, in order, each row as it stands there beside its numbers.

Nothing is staged, on disk or as a whole in memory: a thread fetches, the consumer decodes. Small shards are fetched
ahead. What comes of a shard counts only once its rows have ended without an error: only then was all of it verified.
"""

import itertools
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress

from tasks.streaming.formats.originals import Originals, read_originals
from tasks.streaming.loading import Loading, check_count
from tasks.streaming.manifest import Shard
from tasks.streaming.objects.retrying import ClosedError
from tasks.streaming.objects.transfer import READ_SIZE

HELD = 2**26  # bytes that are fetched and not yet decoded, besides those of the shard in hand


def pass_shards(
    loading: Loading, shards: Sequence[Shard], threads: int
) -> Generator[tuple[Shard, Iterator[Originals]], None, None]:
    """Yield each shard with its good rows, some at a time; they are to be gone through before the next is asked for.

    Closing the generator ends every thread. Raises ShardError.
    """
    stop, begun = threading.Event(), deque[_Fetching]()
    ahead = deque(shards)
    try:
        for shard in shards:
            while ahead and _may_begin(ahead[0], begun, threads):
                begun.append(_Fetching(loading, ahead.popleft(), stop))
            yield shard, _count(shard, read_originals(shard.uri, begun[0].pieces(), loading.contract))
            begun.popleft().join()
    finally:
        stop.set()
        for fetching in begun:
            fetching.join()


def _may_begin(shard: Shard, begun: "deque[_Fetching]", threads: int) -> bool:
    held = sum(fetching.size for fetching in itertools.islice(begun, 1, None))
    return not begun or (len(begun) < threads and held + shard.size <= HELD)


def _count(shard: Shard, parts: Iterator[Originals]) -> Iterator[Originals]:
    rows = 0
    for part in parts:
        rows += len(part.numbers)
        yield part
    check_count(shard, rows)


class _Fetching:
    """A shard's bytes, read on a thread into a queue that is full at `HELD` bytes."""

    def __init__(self, loading: Loading, shard: Shard, stop: threading.Event) -> None:
        self.size = shard.size
        self._stop = stop
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(HELD // READ_SIZE)
        self._thread = threading.Thread(
            target=self._fetch, args=(loading.fetch(shard, stop),), name="shardline-fetch", daemon=True
        )
        self._thread.start()

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes; raises what fetching them raised."""
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._thread.join()

    def _fetch(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                self._put(piece)
            self._put(None)
        except ClosedError:
            pass
        except BaseException as error:
            with suppress(ClosedError):
                self._put(error)

    def _put(self, item: bytes | BaseException | None) -> None:
        while not self._stop.is_set():
            with suppress(queue.Full):
                return self._queue.put(item, timeout=0.1)
        raise ClosedError
