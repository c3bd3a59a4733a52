"""One shard, from the store to decoded rows: nothing of it is handed out before all of it was verified."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.errors import RowCountError
from tasks.streaming.contract import Contract
from tasks.streaming.decoding import cut_blocks, decode_block
from tasks.streaming.manifest import Shard
from tasks.streaming.patience import Patience
from tasks.streaming.staging import Staging
from tasks.streaming.stores import Listed, Store
from tasks.streaming.transfer import read_object

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Loaded:
    """Decoded rows of a shard, [rows, columns] row-major, and what they took (thread-seconds)."""

    rows: "NDArray[Any]"
    fetch_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Loading:
    """How shards of one data set are loaded. folder: where the rows of large shards are staged; large: in bytes."""

    store: Store
    contract: Contract
    patience: Patience
    dtype: str
    folder: str
    large: int

    def load(self, shard: Shard, stop: threading.Event) -> Loaded:
        """Fetches, decodes and verifies: size, ETag, MD5, header, every cell, number of rows. Raises ShardError."""
        import numpy as np

        began = time.perf_counter()
        width = len(self.contract.columns)
        is_large = shard.rows * width * np.dtype(self.dtype).itemsize > self.large
        staging = Staging(shard.rows, width, self.dtype, folder=self.folder if is_large else None)
        fetching = _Stopwatch(read_object(self.store, Listed(shard.uri, shard.size, shard.etag), self.patience, stop=stop))
        surplus = 0
        for block in cut_blocks(shard.uri, fetching, self.contract):
            surplus += staging.append(decode_block(block, self.contract.columns))
        if surplus or staging.filled != shard.rows:
            raise RowCountError(
                f"{shard.uri}: {staging.filled + surplus} rows, but {shard.rows} are stated for it. "
                "Correct the metadata, or remove it so that the shards are counted by reading."
            )
        return Loaded(staging.array, fetching.seconds, time.perf_counter() - began - fetching.seconds)


class _Stopwatch:
    """Hands on what an iterator yields and adds up the seconds that it takes."""

    def __init__(self, iterator: Iterator[bytes]) -> None:
        self._iterator = iterator
        self.seconds = 0.0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        began = time.perf_counter()
        try:
            return next(self._iterator)
        finally:
            self.seconds += time.perf_counter() - began
