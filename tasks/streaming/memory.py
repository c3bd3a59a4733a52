"""The most memory that a stream takes above what its process has: the README's formula.

`tests/benchmarks/stream_memory.py` measures streams and holds the formula to them.
"""

HELD = 2**27  # bytes of decoded shards that are loaded ahead in any case, however small the batches are
A_LOADER = 25 * 2**20  # bytes for each loading thread
A_LARGE_LOADER = 32 * 2**20  # where shards are of 64 MiB and more
BATCHES = 4  # being put together, ready, in use, and pages for the next one
A_PROCESS = 180 * 2**20  # bytes that Python and torch take in a process that does nothing but stream


def bound_memory(
    batch: int,
    prefetch: int,
    *,
    loaders: int,
    shuffle: bool = False,
    large: bool = False,
    held: int | None = None,
    parquet: int = 0,
    batches: int = BATCHES,
) -> int:
    """Return the most bytes that a stream takes.

    batch: bytes of a decoded batch
    prefetch: batches whose shards are loaded ahead
    loaders: threads that load; large: whether shards are of 64 MiB and more
    held: most bytes of decoded shards that are in memory at a time, where that is known: 0 where a cache has them all
    parquet: most bytes of a fetched Parquet file in memory; its row groups are read from it, as it was compressed
    batches: that the stream has; where they are few, no more are in memory
    """
    ahead = max(HELD, (prefetch + 1) * batch)
    at_once = min(BATCHES, batches)
    return (
        loaders * ((A_LARGE_LOADER if large else A_LOADER) + 2 * parquet)
        + (ahead if held is None else min(ahead, held))
        + (2 * at_once if shuffle else at_once) * batch
    )
