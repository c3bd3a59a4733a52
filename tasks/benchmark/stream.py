"""How fast the stream is, and a training over it: its stages alone, and whole iterations, timed.

Streaming and learning meet here as they do in training, and tasks.devices makes figures and predictions of the times.
Nothing else is needed, neither Prefect nor parameters: this runs wherever training does.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tasks.devices.measurement import Figure
from tasks.devices.prediction import Data, Source, StreamRates
from tasks.devices.timing import Timing, cut_blocks, make_clock, time_passes
from tasks.learning.batches import Preparation, Prepared
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.scaling import Scaling
from tasks.streaming.dataset import LOADERS, ObjectStorageDataset
from tasks.streaming.manifest import Manifest, Shard
from tasks.streaming.objects.retrying import RetryPolicy
from tasks.streaming.objects.schemes import open_store
from tasks.streaming.objects.store import Listed
from tasks.streaming.objects.transfer import read_object

SAMPLE_BYTES, MOST_BYTES = 2**25, 2**28  # of shards that the stages are timed on
KEPT_BATCHES = 4  # of the stream, for the resident iterations
FEWEST_ITERATIONS = 5  # the first is not counted

StorageOptions = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StreamMeasurement:
    """The stages as figures and rates, and the iterations' times by device and kind of data, of `rows` rows each."""

    rows: int
    figures: tuple[Figure, ...]
    rates: StreamRates
    iterations: dict[tuple[str, Data], Timing]


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """The bytes of the shards that the stages are timed on, and what a pass over them took in seconds.

    `core_seconds` is for how long fetching kept the processor busy.
    """

    shards: dict[Shard, bytes]
    timing: Timing
    core_seconds: float

    @property
    def size(self) -> int:
        """Bytes of all shards."""
        return sum(map(len, self.shards.values()))

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)


def measure_stream(
    manifest: Manifest,
    features: Features,
    *,
    batch_size: int,
    devices: Sequence[str],
    cores: float,
    seconds: float,
    storage_options: StorageOptions | None = None,
) -> StreamMeasurement:
    """Time fetching, decoding and preparing alone, then streamed and resident iterations on each device.

    `cores` are those that this process may use. Takes about `seconds`, and more where one pass over the first shards
    does. Raises what the stream raises.
    """
    share = seconds / (2 + 3 * len(devices))
    fetched = _time_fetching(manifest, storage_options, share)
    decoding, batch = _time_decoding(manifest, fetched, batch_size, share)
    loop = _Loop(manifest, features, storage_options, batch_size, batch)
    source = _name_source(manifest)
    fetch = _make_figure("fetch", source, fetched.size, fetched.timing, unit="B/s")
    decode = _make_figure("decode", "cpu", fetched.rows, decoding)
    prepare = _make_figure("prepare", "cpu", len(batch), loop.time_preparing("cpu", share))
    figures = [fetch, decode, prepare]
    for device in devices:
        if device != "cpu":
            figures.append(_make_figure("prepare", device, len(batch), loop.time_preparing(device, share)))
    iterations: dict[tuple[str, Data], Timing] = {}
    for device in devices:
        iterations[device, "streamed"], iterations[device, "resident"] = loop.time_iterations(device, share)
        figures.append(_make_figure("streamed_iteration", device, batch_size, iterations[device, "streamed"]))
        figures.append(_make_figure("resident_iteration", device, batch_size, iterations[device, "resident"]))
    rates = StreamRates(
        fetch=fetch.rate,
        receive=fetched.size * cores / fetched.core_seconds,
        decode=decode.rate,
        prepare=prepare.rate,
        row_bytes=fetched.size / fetched.rows,
        numbers=len(features.columns),
        source=source,
    )
    return StreamMeasurement(rows=batch_size, figures=tuple(figures), rates=rates, iterations=iterations)


def _name_source(manifest: Manifest) -> Source:
    """Return what fetching keeps busy: the disk where the shards are files of this machine."""
    return "network" if "://" in manifest.shards[0].uri.removeprefix("file://") else "disk"


def _make_figure(name: str, device: str, size: int, timing: Timing, unit: str = "rows/s") -> Figure:
    return Figure(
        **asdict(timing),
        name=name,
        device=device,
        dtype="float64",
        size=size,
        rate=size / timing.seconds,
        unit=unit,
        limit=None,
    )


def _choose_sample(shards: Sequence[Shard], threads: int) -> list[Shard]:
    """Return the first shards: enough bytes, as many for each thread, but one at least and not too many bytes."""
    count, size = 0, 0
    while count < len(shards) and (size < SAMPLE_BYTES or count % threads) and size < MOST_BYTES:
        size += shards[count].size
        count += 1
    return list(shards[:count])


def _time_fetching(manifest: Manifest, storage_options: StorageOptions | None, seconds: float) -> Fetched:
    """Read the sample's shards again and again."""
    retry = RetryPolicy()
    sample = _choose_sample(manifest.shards, LOADERS)
    store = open_store(sample[0].uri, storage_options, retry)
    shards: dict[Shard, bytes] = {}

    def fetch(shard: Shard) -> None:
        shards[shard] = b"".join(read_object(store, Listed(shard.uri, shard.size, shard.etag), retry))

    passes = itertools.count()
    began = time.process_time()

    def fetch_all() -> None:
        deque(threads.map(fetch, sample), maxlen=0)
        next(passes)

    with ThreadPoolExecutor(LOADERS) as threads:
        timing = time_passes(fetch_all, seconds)
    core_seconds = max((time.process_time() - began) / next(passes), 1e-9)
    return Fetched(shards=shards, timing=timing, core_seconds=core_seconds)


def _time_decoding(manifest: Manifest, fetched: Fetched, batch_size: int, seconds: float) -> tuple[Timing, Tensor]:
    """Stream the fetched shards again and again from local files; return the timing, and a first batch."""
    with tempfile.TemporaryDirectory(prefix="shardline-") as folder:
        copies = []
        for number, (shard, data) in enumerate(fetched.shards.items()):
            path = Path(folder) / f"part-{number:05d}{Path(shard.uri).suffix}"
            path.write_bytes(data)
            # an ETag that is no MD5 is not compared: it was when the shard was fetched
            copies.append(Shard(path.as_uri(), shard.size, "copied", shard.rows))
        local = Manifest(tuple(copies), manifest.columns, header=manifest.header)
        dataset = ObjectStorageDataset.from_manifest(local, batch_size=min(batch_size, local.rows), epochs=1)
        firsts: deque[Tensor] = deque(maxlen=1)

        def decode_all() -> None:
            batches = iter(dataset)
            firsts.append(next(batches))
            deque(batches, maxlen=0)

        return time_passes(decode_all, seconds), firsts[0]


class _Loop:
    """The training loop as the default preset runs it, over the stream and over batches that stay on the device."""

    def __init__(
        self,
        manifest: Manifest,
        features: Features,
        storage_options: StorageOptions | None,
        batch_size: int,
        batch: Tensor,
    ) -> None:
        self.manifest, self.storage_options = manifest, storage_options
        self.features, self.batch_size, self.batch = features, batch_size, batch
        self.scaling = Scaling.of(features.of(batch))

    def time_preparing(self, device: str, seconds: float) -> Timing:
        """Time deriving and standardising the features of a batch that is on the device."""
        batch, scaling = self.batch.to(device), self.scaling.to(torch.device(device))
        return time_passes(lambda: scaling.apply(self.features.of(batch)), seconds, make_clock(device))

    def time_iterations(self, device: str, seconds: float) -> tuple[Timing, Timing]:
        """Time whole iterations: over first passes of the stream, and over its first batches kept on the device.

        Later passes of one stream are no measure: it holds on to decoded shards as far as memory allows.
        """
        self._warm_up(device)
        kept: list[Prepared] = []
        passes: list[list[tuple[float, int]]] = []
        began = time.perf_counter()
        while not passes or time.perf_counter() - began < seconds:
            with closing(self._prepare(device, kept)) as batches:
                passes.append(self._run(batches, device, -(-self.manifest.rows // self.batch_size), seconds))
        resident = self._run(itertools.cycle(kept), device, 10**9, seconds)[1:]
        streamed = passes if len(passes) > 1 else cut_blocks(passes[0])
        return (
            Timing.of([self._average(iterations) for iterations in streamed]),
            Timing.of([self._average([iteration]) for iteration in resident]),
        )

    def _average(self, iterations: Sequence[tuple[float, int]]) -> float:
        """Return the seconds that a whole batch takes, from iterations of which the last may be short."""
        return self.batch_size * sum(seconds for seconds, _ in iterations) / sum(rows for _, rows in iterations)

    def _warm_up(self, device: str) -> None:
        """Run iterations that are not counted: the first ones load libraries, and on a GPU make its context."""
        batches = self._preparation(device).stream(itertools.repeat(self.batch))
        self._run(batches, device, FEWEST_ITERATIONS, seconds=0.0)

    def _preparation(self, device: str) -> Preparation:
        return Preparation(
            features=self.features, scaling=self.scaling, dtype=torch.float64, device=torch.device(device)
        )

    def _prepare(self, device: str, kept: list[Prepared]) -> Generator[Prepared, None, None]:
        """Yield the batches of one pass, prepared on the device, and keep the first ones."""
        dataset = ObjectStorageDataset.from_manifest(
            self.manifest, batch_size=self.batch_size, epochs=1, storage_options=self.storage_options
        )
        with closing(dataset.batches()) as stream:
            for batch in self._preparation(device).stream(each.tensor for each in stream):
                if len(kept) < KEPT_BATCHES:
                    kept.append(Prepared(batch.x, batch.y, next_is_ready=True))  # without what it was copied from
                yield batch

    def _run(
        self, batches: Iterator[Prepared], device: str, iterations: int, seconds: float
    ) -> list[tuple[float, int]]:
        """Train until the iterations or, after some, the seconds are used up; return each one's seconds and rows."""
        settings = Settings(iterations=iterations, learning_rate=None, gradient_norm=0.0, seed=None)
        trainer = Trainer(self.features, self.scaling, settings, torch.device(device))  # imports much the first time
        times: list[tuple[float, int]] = []
        began = before = time.perf_counter()
        for iteration in train(trainer, batches):
            now = time.perf_counter()
            times.append((now - before, iteration.rows))
            before = now
            if now - began > seconds and len(times) >= FEWEST_ITERATIONS:
                break
        return times
