"""What the training loop reaches on a device, beside limits that are measured in the same run.

    python -m tests.gpu

An iteration over data that stays on the device is held against one read of its batch, one over batches in pinned
memory against the bus, one over the cache or CSV against the stream without training. It needs what training needs.
"""

from __future__ import annotations

import itertools
import platform
import re
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from deployments.generator import write_data
from tasks.devices.description import Hardware
from tasks.devices.description import describe as describe_hardware
from tasks.devices.kernels import make_bandwidth, make_transfers
from tasks.devices.measurement import Figure
from tasks.devices.measurement import measure as measure_jobs
from tasks.devices.planning import PLANS, plan_jobs
from tasks.devices.wording import write_figures, write_unit
from tasks.learning.batches import Preparation, Prepared, pin_pages
from tasks.learning.blocks import MOST
from tasks.learning.features import Features
from tasks.learning.loop import Settings, Trainer, train
from tasks.learning.residency import stay_resident
from tasks.learning.scaling import Scaling
from tasks.streaming import CacheSettings, ObjectStorageDataset
from tasks.usage.stepping import build_step

FEATURES = Features.choose(["y", *"abcdefgh"])
FLOAT = 8  # bytes
RESIDENT_AIM = 2.0  # times one read of the batch, at most
PINNED_AIM = 1 / 0.9  # times its copy at the rate of the bus, at most
ROUNDS = 5
LIMIT_SECONDS = 30  # that measuring what the rest is held against may take


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: `seconds` is what kernels may take in all, `largest` the elements of the largest a + b."""

    device: str
    seconds: float
    batch_rows: int = 2**20
    batches: int = 4
    iterations: int = 256
    largest: int = 2**27
    vector: int = 2**27


@dataclass(frozen=True, kw_only=True)
class Beside:
    """The seconds of an iteration, and of what it cannot be faster than; `most` times that is its aim, None: no aim."""

    name: str
    seconds: float
    limit: float
    limited_by: str
    most: float | None = None

    @property
    def is_missed(self) -> bool:
        """Whether it takes longer than it is to."""
        return self.most is not None and self.seconds > self.most * self.limit


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that was measured on a device of this hardware."""

    setting: Setting
    hardware: Hardware
    figures: tuple[Figure, ...]
    left_out: tuple[str, ...]
    iterations: tuple[Beside, ...]


def measure(setting: Setting) -> Measured:
    """Measure the kernels, then the loop beside the limits that they set."""
    hardware = describe_hardware()
    plan = replace(
        PLANS["standard"],
        budget=setting.seconds / 2,
        max_size=setting.largest,
        vector=setting.vector,
        products={"cpu": (), "cuda": ()},
    )
    devices = dict.fromkeys(("cpu", setting.device))
    jobs = [*make_bandwidth(setting.device, setting.vector)]
    if setting.device != "cpu":
        jobs += make_transfers(setting.device, setting.batch_rows * len(FEATURES.columns))
    limits, missed = measure_jobs(jobs, hardware, replace(plan, budget=LIMIT_SECONDS))
    done = {(job.name, job.device) for job in jobs}
    others = [job for job in plan_jobs(devices, plan, build_step) if (job.name, job.device) not in done]
    figures, left_out = measure_jobs(others, hardware, plan)
    rates = {figure.name: figure.rate for figure in limits}
    return Measured(
        setting=setting,
        hardware=hardware,
        figures=(*limits, *figures),
        left_out=(*missed, *left_out),
        iterations=(*_measure_memory(setting, rates), *_measure_shards(setting)),
    )


def _measure_memory(setting: Setting, rates: dict[str, float]) -> Iterator[Beside]:
    """Yield the loop over resident data, and over batches in pinned memory where the device is another's."""
    batch_bytes = setting.batch_rows * len(FEATURES.columns) * FLOAT
    batches = [
        torch.randn(setting.batch_rows, len(FEATURES.columns), dtype=torch.float64) for _ in range(setting.batches)
    ]
    rows = setting.batch_rows * setting.batches
    yield Beside(
        name="resident",
        seconds=_time_loop(setting, lambda stream: stay_resident(stream, rows, 2**40), itertools.cycle(batches)),
        limit=batch_bytes / rates["copy"],
        limited_by="one read of the batch",
        most=RESIDENT_AIM,
    )
    if setting.device != "cpu":
        pinned = [batch.pin_memory() for batch in batches]
        yield Beside(
            name="streamed from pinned memory",
            seconds=_time_loop(setting, lambda stream: stream, itertools.cycle(pinned)),
            limit=batch_bytes / rates["host_to_device_pinned"],
            limited_by="the bus, host to device",
            most=PINNED_AIM,
        )


def _time_loop(
    setting: Setting, kept: Callable[[Iterator[Prepared]], Iterator[Prepared]], batches: Iterable[Tensor]
) -> float:
    """Return the median seconds of an iteration over rounds of whole blocks, after two passes and two blocks."""
    trainer, preparation = _start(setting, FEATURES, Scaling.none(len(FEATURES.names)))
    loop = train(trainer, kept(preparation.stream(iter(batches), is_ready=lambda: True)))
    for _ in range(2 * setting.batches + 2 * MOST):  # the second block is captured
        next(loop)
    count = -(-setting.iterations // (ROUNDS * MOST)) * MOST
    rounds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for _ in itertools.islice(loop, count):
            pass
        rounds.append((time.perf_counter() - began) / count)
    return statistics.median(rounds)


def _start(setting: Setting, features: Features, scaling: Scaling) -> tuple[Trainer, Preparation]:
    settings = Settings(iterations=10**9, learning_rate=0.01, gradient_norm=0.0, seed=0)
    device = torch.device(setting.device)
    preparation = Preparation(features=features, scaling=scaling, dtype=torch.float64, device=device)
    return Trainer(features, scaling, settings, device), preparation


def _measure_shards(setting: Setting) -> Iterator[Beside]:
    """Yield the loop over a pass from CSV shards, and from the cache, each beside the stream without training."""
    with tempfile.TemporaryDirectory(prefix="shardline-") as folder:
        write_data(Path(folder) / "data", setting.batch_rows * setting.batches)
        shards, cache = f"{folder}/data/csv/dev/part*.csv", CacheSettings(folder=f"{folder}/cache")
        pages = None if setting.device == "cpu" else pin_pages
        fresh = ObjectStorageDataset(shards, batch_size=setting.batch_rows, epochs=1, pages=pages)
        cached = ObjectStorageDataset(shards, batch_size=setting.batch_rows, epochs=1, pages=pages, cache=cache)
        deque(cached, maxlen=0)  # which fills the cache
        for name, dataset in (("streamed from CSV", fresh), ("streamed from the cache", cached)):
            alone, trained = zip(*(_time_passes(setting, dataset) for _ in range(3)), strict=True)
            yield Beside(
                name=name,
                seconds=statistics.median(trained),
                limit=statistics.median(alone),
                limited_by="the stream alone",
            )


def _time_passes(setting: Setting, dataset: ObjectStorageDataset) -> tuple[float, float]:
    """Return the seconds of a batch in a pass over the stream alone, and in one that trains."""
    began = time.perf_counter()
    with closing(dataset.batches()) as stream:
        first = next(stream).tensor
        deque(stream, maxlen=0)
    alone = time.perf_counter() - began
    features = Features.choose(dataset.manifest.columns)
    trainer, preparation = _start(setting, features, Scaling.of(features.of(first)))
    with closing(dataset.batches()) as stream:
        loop = train(trainer, preparation.stream((each.tensor for each in stream), is_ready=dataset.is_ready))
        began = time.perf_counter()
        for _ in range(len(dataset)):
            next(loop)
        trained = time.perf_counter() - began
    return alone / len(dataset), trained / len(dataset)


def describe(measured: Measured, tests: dict[str, str]) -> str:
    """Return a section of the results: the card, driver and versions, what the tests said, and both tables."""
    rows = [
        f"| {each.name} | {write_unit(each.seconds, 's')} | {write_unit(each.limit, 's')}, {each.limited_by} "
        f"| {each.seconds / each.limit:.2f} "
        f"| {f'{each.most:.2f}' if each.most else '–'}{', **missed**' if each.is_missed else ''} |"
        for each in measured.iterations
    ]
    shown = [figure for figure in measured.figures if figure.name != "add" or figure.size.bit_length() % 4 == 0]
    setting = measured.setting
    return "\n".join(
        [
            f"## On a GPU: {measured.hardware.get_name(setting.device)}",
            "",
            f"`make gpu`, {time.strftime('%Y-%m-%d')}: {_describe_versions(measured.hardware)}. "
            + "; ".join(f"{name}: {said}" for name, said in tests.items())
            + ".",
            "",
            f"Iterations of {setting.batch_rows:,} × {len(FEATURES.names)} float64:",
            "",
            "| an iteration | took | cannot be faster than | times that | at most |",
            "|---|---:|---:|---:|---:|",
            *rows,
            "",
            write_figures(shown),
            *(f"\nLeft out: {sentence}" for sentence in measured.left_out),
            "",
        ]
    )


def _describe_versions(hardware: Hardware) -> str:
    cuda = hardware.torch.cuda_version
    driver = re.search(r"Driver Version: ([\d.]+)", hardware.nvidia_smi or "")
    parts = [
        f"driver {driver.group(1) if driver else 'not known'}",
        f"torch {hardware.torch.version}{f' for CUDA {cuda}' if cuda else ''}",
        f"triton {_find_version('triton')}",
        f"numpy {_find_version('numpy')}",
        f"pyarrow {_find_version('pyarrow')}",
        f"Python {platform.python_version()}",
        hardware.get_name("cpu"),
    ]
    return ", ".join(parts)


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
