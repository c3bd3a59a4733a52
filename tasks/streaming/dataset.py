"""`ObjectStorageDataset`: an iterable-style torch dataset over CSV shards in object storage."""

import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import IterableDataset, get_worker_info

from tasks.errors import ConfigurationError
from tasks.streaming.arithmetic import Sequencing, count_batches
from tasks.streaming.batches import Batch, Times
from tasks.streaming.cache import Cache
from tasks.streaming.formats.contract import Contract, Header
from tasks.streaming.listing.locating import locate
from tasks.streaming.loading import Loading
from tasks.streaming.manifest import Manifest
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.schemes import open_store
from tasks.streaming.pipeline import Pipeline
from tasks.streaming.planning import Request, plan_batches
from tasks.streaming.prefetching import Prefetcher
from tasks.streaming.progress import ProgressBar
from tasks.streaming.quarantine import set_bad_rows_aside

NUMPY_NAMES = {torch.float64: "float64", torch.float32: "float32"}
IN_MEMORY = 2**26  # bytes of decoded rows; a larger shard is staged in a temporary file
HELD = 2**27  # bytes of decoded shards that are loaded ahead in any case, however small the batches are
SMALLEST_WINDOW = 2**18
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
LOADERS = 2 * CORES  # one fetches while another decodes


class ObjectStorageDataset(IterableDataset[torch.Tensor]):
    """Batches of exactly `batch_size` rows from CSV shards, as [rows, columns] tensors.

    Batch i holds the rows [i·B, (i+1)·B) of the shards in order, wrapping at the end of the data (see `arithmetic.py`).
    Plain iteration yields tensors; `batches()` yields them with their iteration and times; `times` are those of the
    last batch that was handed out in this process.

    shards: a glob, URI or path, several of them, or a Manifest (of which columns and max_shards may choose a part)
    batch_size: rows of a batch over all ranks together
    epochs: how often all rows are gone through, the last batch then being short; None: without end
    header, columns, meta_shards, max_shards, storage_options, deadline_seconds, minimum_throughput: as in `locate`
    shuffle, seed: a new order in each epoch, the same for every rank count, worker count and cache
    rank, world_size: which part of each batch this process takes; None: from torch.distributed where it is initialised,
        else from RANK and WORLD_SIZE, else all of it
    start: the first iteration
    dtype: torch.float64 or torch.float32
    prefetch: batches made ready ahead
    progress: whether a line in the terminal shows how far the stream is; never where standard error is no terminal
    cache: keep decoded shards on local disk, and read them from there the next time
    cache_dir: where (and where bad rows are listed); None: $XDG_CACHE_HOME/shardline or ~/.cache/shardline
    cache_bytes: how much the cache may hold; None: four fifths of what the disk has free
    on_bad_rows: "error" raises at a row that breaks the contract; "quarantine" goes through all shards once, now,
        leaves out such rows, counts them (`bad_rows`) and lists them in a CSV file (`bad_rows_file`)

    Under a DataLoader with K workers, worker k yields the whole batches k, k+K, …: no row twice, the order kept.
    Raises ConfigurationError at once; errors of tasks/errors.py when located or read.
    """

    def __init__(
        self,
        shards: str | Sequence[str] | Manifest,
        *,
        batch_size: int = 2**20,
        epochs: int | None = None,
        header: Header = "infer",
        columns: Sequence[str] | None = None,
        meta_shards: str | None = None,
        max_shards: int | None = None,
        on_bad_rows: Literal["error", "quarantine"] = "error",
        shuffle: bool = False,
        seed: int = 0,
        rank: int | None = None,
        world_size: int | None = None,
        start: int = 0,
        dtype: torch.dtype = torch.float64,
        prefetch: int = 2,
        progress: bool = False,
        cache: bool = False,
        cache_dir: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        deadline_seconds: float = 60.0,
        minimum_throughput: float = 2**20,
    ) -> None:
        super().__init__()
        self.rank, self.world_size = _place(rank, world_size)
        self.batch_size, self.epochs, self.start = batch_size, epochs, start
        self.on_bad_rows = on_bad_rows
        self.shuffle, self.seed, self.dtype, self.prefetch = shuffle, seed, dtype, prefetch
        self._check()
        if not isinstance(shards, Manifest):
            shards = locate(
                shards,
                meta_shards=meta_shards,
                header=header,
                columns=columns,
                max_shards=max_shards,
                storage_options=storage_options,
                deadline_seconds=deadline_seconds,
                minimum_throughput=minimum_throughput,
            )
        else:
            shards = _choose(shards, columns, max_shards)
        self.times: Times | None = None
        self.bad_rows, self.bad_rows_file = 0, None
        self._folder = Path(cache_dir).expanduser() if cache_dir is not None else _default_folder()
        self._cache, self._cache_bytes = cache, cache_bytes
        self._progress = progress
        self._retry = RetryPolicy(deadline_seconds, minimum_throughput)
        self._store = open_store(shards.shards[0].uri, storage_options, self._retry)
        self._contract = Contract.of(shards, drops_bad_rows=on_bad_rows == "quarantine")
        self.manifest = shards
        if self._contract.drops_bad_rows:
            self.manifest, self.bad_rows, self.bad_rows_file = set_bad_rows_aside(
                shards, self._loading(None), self._folder / "quarantine", LOADERS
            )

    def __len__(self) -> int:
        """Batches that an iteration yields: ceil(epochs · rows / batch_size), less those before `start`."""
        if self.epochs is None:
            raise TypeError("an endless ObjectStorageDataset has no len(); set epochs")
        return max(0, count_batches(self.manifest.rows, self.batch_size, self.epochs) - self.start)

    def __iter__(self) -> Iterator[torch.Tensor]:
        with closing(self.batches()) as batches:
            yield from map(attrgetter("tensor"), batches)

    def batches(self) -> Generator[Batch, None, None]:
        """The batches with their iterations and times. Closing the generator ends every thread."""
        pipeline = iter(self._pipeline())
        total = None if self.epochs is None else self.epochs * self.manifest.rows // self.world_size
        progress = ProgressBar("streaming", total, "rows") if self._progress else None
        try:
            while True:
                began = time.perf_counter()
                item = next(pipeline, None)
                if item is None:
                    return
                waited = time.perf_counter() - began
                self.times = Times(waited, item.fetch_seconds, item.decode_seconds, item.assemble_seconds)
                if progress:
                    progress.advance(len(item.rows))
                yield Batch(torch.from_numpy(item.rows), item.iteration, self.times)
                del item  # or it would hold the last batch while the next one is waited for
        finally:
            pipeline.close()  # type: ignore[attr-defined]
            if progress:
                progress.close()

    def _pipeline(self) -> Pipeline:
        worker = get_worker_info()
        first, step = (self.start, 1) if worker is None else (self.start + worker.id, worker.num_workers)
        window = max(2 * self.batch_size, SMALLEST_WINDOW) if self.shuffle else None
        request = Request(first, step, self.rank, self.world_size, self.batch_size, self.epochs)
        sequencing = Sequencing(self.manifest.counts, window=window, seed=self.seed)
        dtype, cache = NUMPY_NAMES[self.dtype], None
        if self._cache:
            cache = Cache(self._folder, self.manifest.shards, self._contract, dtype, limit=self._cache_bytes)
        prefetcher = Prefetcher(
            self._loading(cache),
            self.manifest.shards,
            plan_batches(sequencing, request),
            ahead=self.prefetch,
            held_bytes=HELD,
            threads=LOADERS,
        )
        return Pipeline(prefetcher, sequencing, len(self.manifest.columns), dtype)

    def _loading(self, cache: Cache | None) -> Loading:
        return Loading(self._store, self._contract, self._retry, NUMPY_NAMES[self.dtype], IN_MEMORY, cache)

    def _check(self) -> None:
        for name, least in (("batch_size", 1), ("start", 0), ("seed", 0), ("prefetch", 1)):
            if getattr(self, name) < least:
                raise ConfigurationError(f"{name} is {getattr(self, name)}; it must be at least {least}.")
        if self.epochs is not None and self.epochs < 1:
            raise ConfigurationError(f"epochs is {self.epochs}; it must be at least 1, or None for an endless stream.")
        if self.on_bad_rows not in ("error", "quarantine"):
            raise ConfigurationError(f"on_bad_rows is {self.on_bad_rows!r}; it may be 'error' or 'quarantine'.")
        if self.dtype not in NUMPY_NAMES:
            raise ConfigurationError(f"dtype is {self.dtype}; it may be torch.float64 or torch.float32.")


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Rank and world size as given, else of torch.distributed, else of the environment, else 0 of 1."""
    if (rank is None) != (world_size is None):
        raise ConfigurationError(f"rank is {rank} and world_size {world_size}: give both, or neither.")
    if rank is None or world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        try:
            rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        except ValueError as error:
            raise ConfigurationError(f"RANK and WORLD_SIZE must be whole numbers: {error}.") from error
    if not 0 <= rank < world_size:
        raise ConfigurationError(f"rank is {rank}, world_size {world_size}; it must be 0 <= rank < world_size.")
    return rank, world_size


def _choose(manifest: Manifest, columns: Sequence[str] | None, max_shards: int | None) -> Manifest:
    """The manifest with the columns and the first shards that were asked for."""
    chosen = replace(manifest, shards=manifest.shards[:max_shards])
    if columns is None or tuple(columns) == manifest.columns:
        return chosen
    known = manifest.header if manifest.header is not None else manifest.columns
    if unknown := [column for column in columns if column not in known]:
        raise ConfigurationError(f"columns names {unknown[0]!r}, which the shards do not have: {', '.join(known)}.")
    if manifest.header is None:
        raise ConfigurationError("columns cannot choose among shards without header lines; locate them with `columns`.")
    return replace(chosen, columns=tuple(columns))


def _default_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "shardline"
