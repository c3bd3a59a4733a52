"""What the stream and the training loop do on this machine: their stages alone, and whole iterations, timed.

Streaming and learning meet here as they do in training; tasks.devices makes figures and predictions of the times.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.parameters import PRESETS, Shards
from tasks.sources import Sources

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.devices.measurement import Figure
    from tasks.devices.prediction import StreamRates
    from tasks.devices.timing import Timing
    from tasks.streaming.manifest import Manifest, Shard

BATCH_ROWS = 2**20  # of a training batch; all rows there are where they are fewer
SAMPLE_BYTES, MOST_BYTES = 2**25, 2**28  # of shards that the stages are timed on
KEPT_BATCHES = 4  # of the stream, for the resident iterations
FEWEST_ITERATIONS = 5  # the first is not counted


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The stream's stages as figures and rates, and the iterations' times by device and kind of data."""

    rows: int
    figures: list[Figure]
    rates: StreamRates
    iterations: dict[tuple[str, str], Timing]


def measure_stream(
    manifest: Manifest, sources: Sources, given: Shards, devices: Iterable[str], cores: float, seconds: float
) -> Measured:
    """Time fetching, decoding and preparing alone, then streamed and resident iterations on each device.

    `cores` are those that this process may use. Takes about `seconds`, and more where one pass over the first shards
    does. Raises what the stream raises.
    """
    devices = list(devices)
    share = seconds / (3 + 2 * len(devices))
    rows = min(BATCH_ROWS, manifest.rows)
    fetched, fetching, cpu_seconds = _time_fetching(manifest, sources, share)
    size, count = sum(map(len, fetched.values())), sum(shard.rows for shard in fetched)
    decoding, batch = _time_decoding(manifest, fetched, rows, share)
    loop = _Loop(manifest, sources, given, rows, batch)
    preparing = loop.time_preparing(batch, share)
    figures = [
        _make_figure("fetch", "network", size, size, "B/s", fetching),
        _make_figure("decode", "cpu", count, count, "rows/s", decoding),
        _make_figure("prepare", "cpu", len(batch), len(batch), "rows/s", preparing),
    ]
    iterations: dict[tuple[str, str], Timing] = {}
    for device in devices:
        streamed, resident = loop.time_iterations(device, share)
        iterations[device, "streamed"], iterations[device, "resident"] = streamed, resident
        figures.append(_make_figure("streamed_iteration", device, rows, rows, "rows/s", streamed))
        figures.append(_make_figure("resident_iteration", device, rows, rows, "rows/s", resident))
    return Measured(
        rows=rows,
        figures=figures,
        rates=_make_rates(figures, size, count, cpu_seconds, cores, numbers=len(loop.features.names) + 1),
        iterations=iterations,
    )


def _make_rates(
    figures: list[Figure], size: int, count: int, cpu_seconds: float, cores: float, numbers: int
) -> StreamRates:
    from tasks.devices.prediction import StreamRates

    fetch, decode, prepare = (figure.rate for figure in figures[:3])
    return StreamRates(
        fetch=fetch,
        receive=size * cores / cpu_seconds,
        decode=decode,
        prepare=prepare,
        row_bytes=size / count,
        numbers=numbers,
    )


def _make_figure(name: str, device: str, size: int, work: float, unit: str, timing: Timing) -> Figure:
    from tasks.devices.measurement import Figure

    return Figure(
        **asdict(timing),
        name=name,
        device=device,
        dtype="float64",
        size=size,
        rate=work / timing.seconds,
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


def _time_fetching(manifest: Manifest, sources: Sources, seconds: float) -> tuple[dict[Shard, bytes], Timing, float]:
    """Read the sample's shards again and again; return their bytes, the timing, and the CPU's core-seconds a pass."""
    from tasks.devices.timing import time_passes
    from tasks.streaming.dataset import LOADERS
    from tasks.streaming.objects.retrying import RetryPolicy
    from tasks.streaming.objects.schemes import open_store
    from tasks.streaming.objects.store import Listed
    from tasks.streaming.objects.transfer import read_object

    retry = RetryPolicy()
    sample = _choose_sample(manifest.shards, LOADERS)
    store = open_store(sample[0].uri, sources.storage_options(sample[0].uri), retry)
    fetched: dict[Shard, bytes] = {}

    def fetch(shard: Shard) -> None:
        fetched[shard] = b"".join(read_object(store, Listed(shard.uri, shard.size, shard.etag), retry))

    passes = itertools.count()
    began = time.process_time()

    def fetch_all() -> None:
        deque(threads.map(fetch, sample), maxlen=0)
        next(passes)

    with ThreadPoolExecutor(LOADERS) as threads:
        timing = time_passes(fetch_all, seconds)
    return fetched, timing, max((time.process_time() - began) / next(passes), 1e-9)


def _time_decoding(manifest: Manifest, fetched: dict[Shard, bytes], rows: int, seconds: float) -> tuple[Timing, Tensor]:
    """Stream the sample's shards again and again from local files; return the timing, and a first batch."""
    from tasks.devices.timing import time_passes
    from tasks.streaming import Manifest, ObjectStorageDataset, Shard

    with tempfile.TemporaryDirectory(prefix="shardline-") as folder:
        copies = []
        for number, (shard, data) in enumerate(fetched.items()):
            path = Path(folder) / f"part-{number:05d}{Path(shard.uri).suffix}"
            path.write_bytes(data)
            # an ETag that is no MD5 is not compared: it was when the shard was fetched
            copies.append(Shard(path.as_uri(), shard.size, "copied", shard.rows))
        local = Manifest(tuple(copies), manifest.columns, header=manifest.header)
        dataset = ObjectStorageDataset(local, batch_size=min(rows, local.rows), epochs=1)
        firsts: deque[Tensor] = deque(maxlen=1)

        def decode_all() -> None:
            batches = iter(dataset)
            firsts.append(next(batches))
            deque(batches, maxlen=0)

        return time_passes(decode_all, seconds), firsts[0]


class _Loop:
    """The training loop as the default preset runs it, over the stream and over batches that stay on the device."""

    def __init__(self, manifest: Manifest, sources: Sources, given: Shards, rows: int, batch: Tensor) -> None:
        from tasks.learning.features import Features
        from tasks.learning.scaling import Scaling

        self.manifest, self.sources, self.rows = manifest, sources, rows
        self.features = Features.choose(
            manifest.columns,
            target=given.target,
            features=given.features,
            derive=PRESETS["default"].derive,
            skip_missing=True,
        )
        self.scaling = Scaling.of(self.features.of(batch))

    def time_preparing(self, batch: Tensor, seconds: float) -> Timing:
        """Time deriving and standardising the features of a batch."""
        from tasks.devices.timing import time_passes

        return time_passes(lambda: self.scaling.apply(self.features.of(batch)), seconds)

    def time_iterations(self, device: str, seconds: float) -> tuple[Timing, Timing]:
        """Time whole iterations: over first passes of the stream, and over its first batches kept on the device.

        Later passes of one stream are no measure: it holds on to decoded shards as far as memory allows.
        """
        from tasks.devices.timing import cut_blocks, summarise

        kept: list[Any] = []
        passes: list[list[tuple[float, int]]] = []
        began = time.perf_counter()
        while not passes or time.perf_counter() - began < seconds:
            with closing(self._prepare(device, kept)) as batches:
                passes.append(self._run(batches, device, -(-self.manifest.rows // self.rows), seconds))
        resident = self._run(itertools.cycle(kept), device, 10**9, seconds)[1:]
        samples = passes if len(passes) > 1 else cut_blocks(passes[0])
        return summarise([self._average(sample) for sample in samples]), summarise(
            [self._average([iteration]) for iteration in resident]
        )

    def _average(self, iterations: list[tuple[float, int]]) -> float:
        """Return the seconds that a whole batch takes, from iterations of which the last may be short."""
        return self.rows * sum(seconds for seconds, _ in iterations) / sum(rows for _, rows in iterations)

    def _prepare(self, device: str, kept: list[Any]) -> Generator[Any, None, None]:
        """Yield the batches of one pass, prepared on the device, and keep the first ones."""
        import torch

        from tasks.learning.batches import Preparation
        from tasks.streaming import ObjectStorageDataset

        there, options = torch.device(device), self.sources.storage_options(self.manifest.shards[0].uri)
        preparation = Preparation(features=self.features, scaling=self.scaling, dtype=torch.float64, device=there)
        dataset = ObjectStorageDataset(self.manifest, batch_size=self.rows, epochs=1, storage_options=options)
        with closing(dataset.batches()) as stream:
            for batch in preparation.stream(each.tensor for each in stream):
                if len(kept) < KEPT_BATCHES:
                    kept.append(batch)
                yield batch

    def _run(self, batches: Iterator[Any], device: str, iterations: int, seconds: float) -> list[tuple[float, int]]:
        """Train until the iterations or, after some, the seconds are used up; return each one's seconds and rows."""
        import torch

        from tasks.learning.loop import Settings, Trainer, train

        settings = Settings(iterations=iterations, learning_rate=0.01, gradient_norm=0.0, seed=0)
        times: list[tuple[float, int]] = []
        began = before = time.perf_counter()
        for iteration in train(Trainer(self.features, self.scaling, settings, torch.device(device)), batches):
            now = time.perf_counter()
            times.append((now - before, iteration.rows))
            before = now
            if now - began > seconds and len(times) >= FEWEST_ITERATIONS:
                break
        return times
