"""Shards gone through once, in order, each row as it stands there beside its numbers.

Nothing is staged, on disk or as a whole in memory: a thread fetches, the consumer decodes. Small shards are fetched
ahead. What comes of a shard counts only once its rows have ended without an error: only then was all of it verified.
"""

import itertools
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence

from tasks.streaming.formats.originals import Originals, read_originals
from tasks.streaming.handover import HandOver
from tasks.streaming.loading import Loading, check_count
from tasks.streaming.manifest import Shard
from tasks.streaming.objects.transfer import READ_SIZE

HELD = 2**26  # bytes that are fetched and not yet decoded, besides those of the shard in hand


def pass_shards(
    loading: Loading, shards: Sequence[Shard], threads: int
) -> Generator[tuple[Shard, Iterator[Originals]], None, None]:
    """Yield each shard with its good rows, some at a time; they are to be gone through before the next is asked for.

    Closing the generator ends every thread. Raises ShardError.
    """
    stop, ahead = threading.Event(), deque(shards)
    begun: deque[tuple[Shard, HandOver[bytes]]] = deque()
    try:
        for shard in shards:
            while ahead and _may_begin(ahead[0], begun, threads):
                begun.append((ahead[0], _begin(loading, ahead.popleft(), stop)))
            yield shard, _count(shard, read_originals(shard.uri, iter(begun[0][1]), loading.contract))
            begun.popleft()[1].join()
    finally:
        stop.set()
        for _, fetching in begun:
            fetching.join()


def _begin(loading: Loading, shard: Shard, stop: threading.Event) -> HandOver[bytes]:
    """Return the shard's bytes, being read on a thread of its own, `HELD` of them ahead."""
    pieces = HandOver(loading.fetch(shard, stop), HELD // READ_SIZE, stop, "shardline-fetch")
    pieces.start()
    return pieces


def _may_begin(shard: Shard, begun: deque[tuple[Shard, HandOver[bytes]]], threads: int) -> bool:
    held = sum(other.size for other, _ in itertools.islice(begun, 1, None))
    return not begun or (len(begun) < threads and held + shard.size <= HELD)


def _count(shard: Shard, parts: Iterator[Originals]) -> Iterator[Originals]:
    rows = 0
    for part in parts:
        rows += len(part.numbers)
        yield part
    check_count(shard, rows)
