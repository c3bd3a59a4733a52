"""Jobs are timed into figures; what does not fit memory or the time budget is left out and said.

Which jobs there are stands in planning, how one is timed in timing, and what the figures mean in comparison and
prediction.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from tasks.devices.description import Hardware
from tasks.devices.kernels import Job
from tasks.devices.planning import MeasuringPlan
from tasks.devices.timing import Clock, SampleTime, Timing, count_preemptions, make_clock, time_kernel

MEMORY_SHARE = 0.8  # of the free memory; the rest is for others, and for what a kernel needs that was not foreseen
CALLS_A_FIGURE = 8  # warm-up, search and the fewest samples: what a figure costs at least


@dataclass(frozen=True, kw_only=True)
class Figure(Timing):
    """A timing of a job, and the `rate` in `unit` that it comes to; `limit` is the hardware's own, where known."""

    name: str
    device: str
    dtype: str
    size: int
    rate: float
    unit: str
    limit: float | None

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What makes the figures of two runs comparable."""
        return self.name, self.device, self.dtype, self.size

    def to_row(self) -> dict[str, object]:
        """Return a flat row of plain values, with the spread and whether it is too noisy to use."""
        return asdict(self) | {"spread": self.spread, "noisy": self.noisy}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "Figure":
        """Return the figure that a row was made of."""
        return cls(**{name: value for name, value in row.items() if name not in ("spread", "noisy")})


def read_free_memory(device: str) -> int:
    """Return the bytes that may still be allocated on a device; for the CPU within the control group's limit too."""
    if device != "cpu":
        import torch

        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    from tasks.devices.cgroups import read_memory_limit

    limit, available = read_memory_limit(), psutil.virtual_memory().available
    return int(available if limit is None else min(available, limit - psutil.Process().memory_info().rss))


@dataclass(frozen=True, kw_only=True)
class Instruments:
    """What measuring reads from the world: a test puts its own in their place.

    `clock` watches the budget, `make_clock` gives the clock of a device's samples, `read_free` the bytes free on one.
    """

    clock: Clock = time.perf_counter
    make_clock: Callable[[str], Clock] = make_clock
    count_preemptions: Callable[[], int] = count_preemptions
    read_free: Callable[[str], int] = read_free_memory


def measure(
    jobs: Iterable[Job], hardware: Hardware, plan: MeasuringPlan, instruments: Instruments | None = None
) -> tuple[list[Figure], list[str]]:
    """Time the jobs one after the other within the plan's budget.

    A job that does not settle down may take its share of the time that is left, so that all have their turn. Returns
    the figures, and sentences for the jobs that did not fit the memory or the time that was left.
    """
    from torch import OutOfMemoryError

    instruments, waiting = instruments or Instruments(), list(jobs)
    deadline = instruments.clock() + plan.budget
    figures: list[Figure] = []
    obstacles: list[tuple[Job, str]] = []
    largest: dict[tuple[str, str, str], Figure] = {}
    for place, job in enumerate(waiting):
        series = (job.name, job.device, job.dtype)
        seconds_left = deadline - instruments.clock()
        obstacle = _find_obstacle(job, largest.get(series), seconds_left, instruments.read_free)
        if obstacle:
            obstacles.append((job, obstacle))
            continue
        allowed = plan.samples.share(seconds_left / (len(waiting) - place))
        try:
            largest[series] = figure = _measure_job(job, hardware, allowed, instruments)
        except OutOfMemoryError:
            obstacles.append((job, "the device ran out of memory"))
            continue
        figures.append(figure)
    return figures, write_obstacles(obstacles)


def _find_obstacle(
    job: Job, smaller: Figure | None, seconds_left: float, read_free: Callable[[str], int]
) -> str | None:
    """Say what keeps a job from being run, judged by the smaller one of its series, or None."""
    if seconds_left <= 0:
        return "the time budget is spent"
    expected = CALLS_A_FIGURE * smaller.seconds * job.size / smaller.size if smaller else 0.0
    if expected > seconds_left:
        return "it would take longer than what is left of the time budget"
    free = read_free(job.device)
    if job.memory > MEMORY_SHARE * free:
        return f"it needs {job.memory / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB are free"
    return None


def _measure_job(job: Job, hardware: Hardware, allowed: SampleTime, instruments: Instruments) -> Figure:
    timing = time_kernel(job.build(), allowed, instruments.make_clock(job.device), instruments.count_preemptions)
    return Figure(
        **asdict(timing),
        name=job.name,
        device=job.device,
        dtype=job.dtype,
        size=job.size,
        rate=job.work / timing.seconds,
        unit=job.unit,
        limit=find_limit(job, hardware),
    )


def write_obstacles(obstacles: Iterable[tuple[Job, str]]) -> list[str]:
    """Return a sentence for all sizes and dtypes of a kernel on a device that were left out for the same reason."""
    groups: dict[tuple[str, str, str], list[Job]] = {}
    for job, reason in obstacles:
        groups.setdefault((job.name, job.device, reason), []).append(job)
    sentences = []
    for (name, device, reason), jobs in groups.items():
        sizes, dtypes = sorted({job.size for job in jobs}), ", ".join(dict.fromkeys(job.dtype for job in jobs))
        extent = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        sentences.append(f"{name} of {extent} ({dtypes}) on {device}: {reason}.")
    return sentences


def find_limit(job: Job, hardware: Hardware) -> float | None:
    """Return the hardware's own limit in bytes/s: of the device's memory, or of the link for copies to and from it."""
    if job.device == "cpu" or job.unit != "B/s":
        return None
    device = hardware.get_cuda(job.device)
    return device.link_limit if job.name.startswith(("host_", "device_")) else device.bandwidth_limit
