"""`ObjectStorageDataset`: an iterable-style torch dataset over CSV shards in object storage."""

import hashlib
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from operator import attrgetter
from typing import Any, Literal, Self, TypedDict, Unpack

import torch
from torch.utils.data import IterableDataset, get_worker_info

from tasks.errors import ConfigurationError
from tasks.streaming.arithmetic import Sequencing, count_batches, find_window
from tasks.streaming.batches import Batch, Times, share
from tasks.streaming.cache import NO_CACHE, Cache, CacheSettings
from tasks.streaming.foreseeing import Expected, foresee
from tasks.streaming.formats.contract import Contract, Header
from tasks.streaming.formats.originals import Originals
from tasks.streaming.formats.terms import Terms
from tasks.streaming.listing.locating import locate
from tasks.streaming.loading import CORES, Loading
from tasks.streaming.lookahead import Lookahead
from tasks.streaming.manifest import Manifest, Shard
from tasks.streaming.memory import HELD, bound_memory
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.schemes import open_store
from tasks.streaming.passing import pass_shards
from tasks.streaming.pipeline import Pipeline
from tasks.streaming.placement import Placement
from tasks.streaming.planning import Request, plan_batches
from tasks.streaming.position import Position
from tasks.streaming.prefetching import Prefetcher
from tasks.streaming.progress import ProgressBar
from tasks.streaming.quarantine import set_bad_rows_aside
from tasks.streaming.staging import MakePages, PagePool

NUMPY_NAMES = {torch.float64: "float64", torch.float32: "float32"}
IN_MEMORY = 2**26  # bytes of decoded rows; a larger shard is staged in a temporary file
LOADERS = 2 * CORES  # one fetches while another decodes


class StreamOptions(TypedDict, total=False):
    """What `ObjectStorageDataset` takes besides the shards; see there."""

    storage_options: Mapping[str, Any] | None
    batch_size: int
    epochs: int | None
    shuffle: bool
    seed: int
    start: int
    stop: int | None
    placement: Placement
    dtype: torch.dtype
    on_bad_rows: Literal["error", "quarantine"]
    prefetch: int
    cache: CacheSettings
    retry: RetryPolicy
    progress: bool
    pages: MakePages | None


class ObjectStorageDataset(IterableDataset[torch.Tensor]):
    """Batches of exactly `batch_size` rows from CSV shards, as [rows, columns] tensors.

    Batch i holds the rows [i·B, (i+1)·B) of the shards in order, wrapping at the end of the data (see `arithmetic.py`).
    Plain iteration yields tensors; `batches()` yields them with their iteration and times; `times` are those of the
    last batch that was handed out in this process, `checks` says by URI which digest the content of each shard that was
    loaded in it had.

    shards: a glob, URI or path, or several, listed as `locate` does by itself (`from_url` says more), or a Manifest
    storage_options: as fsspec's implementation of the scheme (s3fs for s3) names them
    batch_size: rows of a batch over all ranks together
    epochs: how often all rows are gone through, the last batch then being short; None: without end
    shuffle, seed: a new order in each epoch, the same for every rank count, worker count and cache
    start, stop: the first iteration, and the one before which the stream ends; None: no such limit
    placement: which part of each batch this process takes; by default as torch.distributed or the environment say
    dtype: torch.float64 or torch.float32
    on_bad_rows: "error" raises at a row that breaks the contract; "quarantine" goes through all shards once, now,
        leaves out such rows, counts them (`bad_rows`) and lists them in a CSV file (`bad_rows_file`)
    prefetch: batches made ready ahead
    cache: whether decoded shards are kept on local disk, where, and how many bytes
    retry: how long one object may take in all, with every attempt
    progress: whether a line in the terminal shows how far the stream is; never where standard error is no terminal
    pages: makes the memory, of so many bytes, in which batches of 1 MiB and more are assembled; None: anonymous memory

    Under a DataLoader with K workers, worker k yields the whole batches k, k+K, …: no row twice, the order kept. Every
    rank has the same number of batches; of a short last one a rank may get no row.

    `state_dict()` is where it stands, whatever the number of ranks and workers; after `load_state_dict()` the next
    iteration, once, begins there. It counts what this process was handed out: of a DataLoader's worker processes
    torchdata's StatefulDataLoader keeps the states.

    Raises ConfigurationError at once; errors of tasks/errors.py when located or read.
    """

    def __init__(
        self,
        shards: str | Sequence[str] | Manifest,
        *,
        storage_options: Mapping[str, Any] | None = None,
        batch_size: int = 2**20,
        epochs: int | None = None,
        shuffle: bool = False,
        seed: int = 0,
        start: int = 0,
        stop: int | None = None,
        placement: Placement = Placement(),
        dtype: torch.dtype = torch.float64,
        on_bad_rows: Literal["error", "quarantine"] = "error",
        prefetch: int = 2,
        cache: CacheSettings = NO_CACHE,
        retry: RetryPolicy = RetryPolicy(),
        progress: bool = False,
        pages: MakePages | None = None,
    ) -> None:
        super().__init__()
        self.rank, self.world_size = placement.resolve()
        self.slice_rows = placement.slice_rows
        self.batch_size = batch_size
        self.epochs = epochs
        self.shuffle = shuffle
        self.seed = seed
        self.start = start
        self.stop = stop
        self.dtype = dtype
        self.on_bad_rows = on_bad_rows
        self.prefetch = prefetch
        _check(vars(self))
        if not isinstance(shards, Manifest):
            shards = locate(shards, storage_options=storage_options, retry=retry)
        self.times: Times | None = None
        self.bad_rows, self.bad_rows_file = 0, None
        self.damaged: list[str] = []
        self.checks: dict[str, str] = {}
        self._cache = cache
        self._retry = retry
        self._progress = progress
        self._pages = pages
        self._running: Pipeline | None = None
        self._store = open_store(shards.shards[0].uri, storage_options, retry)
        self._contract = Contract.of(shards, drops_bad_rows=on_bad_rows == "quarantine")
        self.manifest = shards
        if self._contract.drops_bad_rows:
            self.manifest, self.bad_rows, self.bad_rows_file = set_bad_rows_aside(
                shards, self._loading(None), cache.path / "quarantine", LOADERS
            )
        self._position = Position(start, self._count_batches(), self._fingerprint(), has_epochs=epochs == 1)

    @classmethod
    def from_url(
        cls,
        shards: str | Sequence[str],
        *,
        header: Header = "infer",
        columns: Sequence[str] | None = None,
        meta_shards: str | None = None,
        max_shards: int | None = None,
        terms: Terms | None = None,
        **options: Unpack[StreamOptions],
    ) -> Self:
        """Return a stream of what a glob, URI or path, or several, name, located as said: see `locate`."""
        _check(options)
        manifest = locate(
            shards,
            meta_shards=meta_shards,
            header=header,
            columns=columns,
            max_shards=max_shards,
            terms=terms,
            storage_options=options.get("storage_options"),
            retry=options.get("retry", RetryPolicy()),
        )
        return cls(manifest, **options)

    @classmethod
    def from_manifest(
        cls,
        manifest: Manifest,
        *,
        columns: Sequence[str] | None = None,
        max_shards: int | None = None,
        **options: Unpack[StreamOptions],
    ) -> Self:
        """Return a stream of shards that were located before, or of these columns and the first shards of them."""
        return cls(manifest.choose(columns, max_shards), **options)

    def __len__(self) -> int:
        """Return how many batches the next iteration yields.

        They are ceil(epochs · rows / batch_size), or those before `stop`, less those before it begins.
        """
        batches = self._count_batches()
        if batches is None:
            raise TypeError("an endless ObjectStorageDataset has no len(); set epochs")
        return max(0, batches - self._position.first)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iterations go through epoch `epoch`, as torch's DistributedSampler does; shuffled, in its order.

        Raises ConfigurationError unless `epochs` is 1.
        """
        self._position.set_epoch(epoch)

    def state_dict(self) -> dict[str, int | str]:
        """Return where the stream stands: the next iteration, and the fingerprint of what decides its rows.

        Where `epochs` is 1, the epoch too. It is small and plain: JSON, or torch.distributed.checkpoint, keep it.
        """
        return self._position.to_dict()

    def load_state_dict(self, state_dict: Mapping[str, int | str]) -> None:
        """Let the next iteration begin where `state_dict` stood, with any number of ranks and workers.

        Raises ConfigurationError where it is the state of other shards, columns, batches or another order.
        """
        self._position.restore(state_dict)

    def __iter__(self) -> Iterator[torch.Tensor]:
        with closing(self.batches()) as batches:
            tensors = map(attrgetter("tensor"), batches)
            yield from tensors if get_worker_info() is None else map(share, tensors)

    def batches(self) -> Generator[Batch, None, None]:
        """Yield the batches with their iterations and times. Closing the generator ends every thread."""
        worker = get_worker_info()
        number, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._running = running = self._pipeline(self._position.begin() + number, step)
        pipeline = iter(running)
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
                self._position.reached = item.iteration - number + step
                yield Batch(torch.from_numpy(item.rows), item.iteration, self.times)
                del item  # or it would hold the last batch while the next one is waited for
        finally:
            if self._running is running:
                self._running = None
            pipeline.close()  # type: ignore[attr-defined]
            if progress:
                progress.close()

    def is_ready(self) -> bool:
        """Return whether the iteration that was begun last can hand its next batch out without waiting."""
        return self._running is not None and self._running.is_ready()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_running": None}  # its threads are of this process

    def originals(
        self, shards: Sequence[Shard] | None = None
    ) -> Generator[tuple[Shard, Iterator[Originals]], None, None]:
        """Yield each shard, or these of `manifest`, in order, with its rows as they stand there: see `pass_shards`.

        Every one is fetched: what the cache holds lacks the columns that are not read.
        """
        return pass_shards(self._loading(None), self.manifest.shards if shards is None else shards, LOADERS)

    def _count_batches(self) -> int | None:
        if self.epochs is None:
            return self.stop
        batches = count_batches(self.manifest.rows, self.batch_size, self.epochs)
        return batches if self.stop is None else min(self.stop, batches)

    def _fingerprint(self) -> str:
        """SHA-256 (hex) of all that decides which rows a batch holds, but for the dtype they are handed out in."""
        order = (self.manifest.fingerprint, self.manifest.columns, self.batch_size, self.shuffle, self.seed)
        bounds = self._contract.digest if self._contract.drops_bad_rows else None
        return hashlib.sha256(repr((*order, bounds) if bounds else order).encode()).hexdigest()

    def expect(self, *, workers: int = 0, earlier: frozenset[str] = frozenset()) -> Expected:
        """Return what the next iteration, which has an end, asks of the store and keeps; nothing is asked for now.

        `workers` are those of the DataLoader that iterates, `earlier` the names of files that the cache will have then.
        """
        step, first = max(1, workers), self._position.first
        lookaheads = (self._look_ahead(first + number, step) for number in range(step))
        loading, shards = self._loading(self._open_cache()), self.manifest.shards
        bound = partial(bound_memory, self.batch_size * loading.row_bytes, self.prefetch, shuffle=self.shuffle)
        return foresee(lookaheads, loading, shards, earlier, bound, threads=LOADERS, batches=-(-len(self) // step))

    def _pipeline(self, first: int, step: int) -> Pipeline:
        loading, lookahead = self._loading(self._open_cache()), self._look_ahead(first, step)
        prefetcher = Prefetcher(loading, self.manifest.shards, lookahead, threads=LOADERS)
        width, pages = len(self.manifest.columns), PagePool(1, self._pages)
        return Pipeline(prefetcher, self._sequencing(), width, NUMPY_NAMES[self.dtype], pages)

    def _look_ahead(self, first: int, step: int) -> Lookahead:
        request = Request(
            first=first,
            step=step,
            rank=self.rank,
            world_size=self.world_size,
            batch_size=self.batch_size,
            epochs=self.epochs,
            stop=self.stop,
            epoch=self._position.epoch,
            slice_rows=self.slice_rows,
        )
        plans, held_rows = plan_batches(self._sequencing(), request), HELD // self._loading(None).row_bytes
        return Lookahead(plans, self.manifest.counts, ahead=self.prefetch, held_rows=held_rows)

    def _sequencing(self) -> Sequencing:
        window = find_window(self.batch_size) if self.shuffle else None
        return Sequencing(self.manifest.counts, window=window, seed=self.seed)

    def _open_cache(self) -> Cache | None:
        if not self._cache.enabled:
            return None
        return Cache(self._cache, self.manifest.shards, self._contract, NUMPY_NAMES[self.dtype], self.damaged)

    def _loading(self, cache: Cache | None) -> Loading:
        dtype, checks = NUMPY_NAMES[self.dtype], self.checks
        return Loading(self._store, self._contract, self._retry, dtype, IN_MEMORY, cache, checks=checks)


def _check(options: Mapping[str, Any]) -> None:
    """Raise ConfigurationError where one of the options that are given cannot be."""
    for name, least in (("batch_size", 1), ("start", 0), ("seed", 0), ("prefetch", 1)):
        if options.get(name, least) < least:
            raise ConfigurationError(f"{name} is {options[name]}; it must be at least {least}")
    epochs = options.get("epochs")
    if epochs is not None and epochs < 1:
        raise ConfigurationError(f"epochs is {epochs}; it must be at least 1, or None for an endless stream")
    if (stop := options.get("stop")) is not None and stop < 0:
        raise ConfigurationError(f"stop is {stop}; it must be at least 0, or None")
    if (on_bad_rows := options.get("on_bad_rows", "error")) not in ("error", "quarantine"):
        raise ConfigurationError(f"on_bad_rows is {on_bad_rows!r}; it may be 'error' or 'quarantine'")
    if (dtype := options.get("dtype", torch.float64)) not in NUMPY_NAMES:
        raise ConfigurationError(f"dtype is {dtype}; it may be torch.float64 or torch.float32")
