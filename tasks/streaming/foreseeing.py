"""What a stream will ask of its store, and keep: told by the arithmetic that it follows, before anything is asked for.

What is not foreseen: attempts that fail and are made again, files of the cache that turn out to be damaged, and of a
cache that cannot hold all, which shards come first, and which go for another data set's.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from tasks.streaming.formats.parquet import IN_MEMORY, is_parquet
from tasks.streaming.loading import Loading
from tasks.streaming.lookahead import Lookahead
from tasks.streaming.manifest import Shard
from tasks.streaming.splitting import LARGE

MOST_BATCHES = 10_000  # that are gone through one by one, in about a second
HALFWAY = MOST_BATCHES // 2


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What going through a data set takes.

    requests, bytes: that the store is asked for; rows: of the shards that are fetched so
    stored: the names of the files that the cache will have, those that are there included
    written: bytes of those that it has not yet; wanted: what they would be if it had room for all; room: what it has
    memory: the most bytes that each process takes which streams; staged: in temporary files
    """

    requests: int = 0
    bytes: int = 0
    rows: int = 0
    stored: frozenset[str] = frozenset()
    written: int = 0
    wanted: int = 0
    room: int = 0
    memory: int = 0
    staged: int = 0

    def __add__(self, other: "Expected") -> "Expected":
        return Expected(
            requests=self.requests + other.requests,
            bytes=self.bytes + other.bytes,
            rows=self.rows + other.rows,
            stored=self.stored | other.stored,
            written=self.written + other.written,
            wanted=self.wanted + other.wanted,
            room=max(self.room, other.room),
            memory=max(self.memory, other.memory),
            staged=max(self.staged, other.staged),
        )


def foresee(
    lookaheads: Iterable[Lookahead],
    loading: Loading,
    shards: Sequence[Shard],
    earlier: frozenset[str],
    bound: Callable[..., int],
    *,
    threads: int,
    batches: int,
) -> Expected:
    """Return what streams take that load what the lookaheads say, each in a process of its own.

    earlier: names of files that the cache will have by then
    bound: `bound_memory` of such a stream
    threads: that load, all of them where a shard is large, else one for each shard at most
    batches: of each stream; of more than MOST_BATCHES the rest ask as the last ones do that are gone through
    """
    first, later, rows = order_loads(lookaheads)
    expected = expect_loads([shards[index] for index in first + later], loading, shards, earlier)
    if batches > MOST_BATCHES:
        begun = expect_loads([shards[index] for index in first], loading, shards, earlier)
        expected = prolong(begun, expected, (batches - MOST_BATCHES) / (MOST_BATCHES - HALFWAY))
    in_cache = loading.cache is not None and expected.written == expected.wanted
    held = 0 if in_cache else rows * loading.row_bytes
    large, parquet = any(shard.size >= LARGE for shard in shards), count_parquet(shards)
    loaders = threads if large else min(threads, len(shards))
    return replace(
        expected,
        memory=bound(loaders=loaders, held=held, large=large, parquet=parquet, batches=batches),
        staged=held if any(shard.rows * loading.row_bytes > loading.large for shard in shards) else 0,
    )


def count_parquet(shards: Iterable[Shard]) -> int:
    """Return the most bytes of any Parquet file that are in memory while it is decoded."""
    return max((min(shard.size, IN_MEMORY) for shard in shards if is_parquet(shard.uri)), default=0)


def prolong(begun: Expected, expected: Expected, times: float) -> Expected:
    """Return what is asked for where the way from `begun` to `expected` is gone so many times more."""
    return replace(
        expected,
        requests=expected.requests + round(times * (expected.requests - begun.requests)),
        bytes=expected.bytes + round(times * (expected.bytes - begun.bytes)),
        rows=expected.rows + round(times * (expected.rows - begun.rows)),
    )


def order_loads(lookaheads: Iterable[Lookahead]) -> tuple[list[int], list[int], int]:
    """Return the shards that are loaded, in order, again where they are loaded again, and most rows held at a time.

    Apart are those of the second half of MOST_BATCHES, after which nobody looks. What is held is the most of any of the
    lookaheads, whose loads follow one another.
    """
    first: list[int] = []
    later: list[int] = []
    held = 0
    for lookahead in lookaheads:
        loads: list[int] = []
        halfway = None
        for number, plan in enumerate(islice(lookahead.plans(loads.append), MOST_BATCHES)):
            if number == HALFWAY:
                halfway = len(loads)
            held = max(held, lookahead.rows)
            lookahead.release(plan)
        first += loads[:halfway]
        later += [] if halfway is None else loads[halfway:]
    return first, later, held


def expect_loads(
    loads: Iterable[Shard], loading: Loading, shards: Sequence[Shard], earlier: frozenset[str] = frozenset()
) -> Expected:
    """Return what loading these shards, of the data set `shards`, takes.

    earlier: names of files that the cache will have by then
    """
    cache = loading.cache
    if cache is None:
        return expect_fetching(loads, loading)
    stored = cache.find(shards) | earlier
    room = left = cache.count_room() - sum(cache.size(shard) for shard in shards if cache.name(shard) in stored)
    fetched: list[Shard] = []
    new: dict[str, int] = {}
    wanted: dict[str, int] = {}
    for shard in loads:
        name, size = cache.name(shard), cache.size(shard)
        if name in stored or name in new:
            continue
        fetched.append(shard)
        wanted[name] = size
        if size <= left:
            new[name] = size
            left -= size
    return replace(
        expect_fetching(fetched, loading),
        stored=stored | new.keys(),
        written=sum(new.values()),
        wanted=sum(wanted.values()),
        room=max(0, room),
    )


def expect_fetching(shards: Iterable[Shard], loading: Loading) -> Expected:
    """Return what fetching these shards takes, past any cache."""
    fetched = list(shards)
    return Expected(
        requests=sum(map(loading.count_requests, fetched)),
        bytes=sum(shard.size for shard in fetched),
        rows=sum(shard.rows for shard in fetched),
    )
