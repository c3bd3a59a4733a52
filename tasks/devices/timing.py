"""How long a kernel takes: torch.utils.benchmark's adaptive timer over a clock that may be injected.

What is timed stands in kernels, and what the times come to in measurement.
"""

import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import quantiles
from typing import TypeVar

Kernel = Callable[[], object]
Clock = Callable[[], float]
Iteration = TypeVar("Iteration")

NOISY_SPREAD = 0.1  # torch.utils.benchmark's own bound, from which it warns of fluctuations
FEWEST_SAMPLES = 4  # fewer have no quartiles
# Involuntary context switches a second and thread. On two quiet cores some 25 were counted, beside a busy process
# 100-200, where matrix products took twice to twenty times as long, sometimes with a spread of 1 %.
PREEMPTED_RATE = 50


@dataclass(frozen=True, kw_only=True)
class SampleTime:
    """How long the samples of one figure may take: at least `shortest` and at most `longest` seconds of samples."""

    shortest: float
    longest: float

    def share(self, seconds: float) -> "SampleTime":
        """Return the same with no more than so many seconds, warm-up (about as much as the shortest) included."""
        longest = min(self.longest, max(self.shortest, seconds - self.shortest))
        return SampleTime(shortest=self.shortest, longest=longest)


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds a call: the median of the samples and their quartiles `low` and `high`; each sample is many `calls`."""

    seconds: float
    low: float
    high: float
    samples: int
    calls: int
    preempted: bool = False

    @staticmethod
    def of(samples: Sequence[float], calls: int = 1, preempted: bool = False) -> "Timing":
        """Return median and quartiles of the samples' seconds a call; one sample is its own quartiles."""
        if len(samples) == 1:
            low = median = high = samples[0]
        else:
            low, median, high = quantiles(samples, n=4, method="inclusive")
        return Timing(seconds=median, low=low, high=high, samples=len(samples), calls=calls, preempted=preempted)

    @property
    def spread(self) -> float:
        """Interquartile range over the median: 0.02 means that half of the samples lie within 2 %."""
        return (self.high - self.low) / self.seconds

    @property
    def noisy(self) -> bool:
        """Whether the figure is too noisy to use: spread, too few samples, or threads that others kept from running."""
        return self.spread > NOISY_SPREAD or self.samples < FEWEST_SAMPLES or self.preempted


def count_preemptions() -> int:
    """Return how often this process's threads were made to wait for others, since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def time_kernel(
    kernel: Kernel,
    allowed: SampleTime,
    clock: Clock = time.perf_counter,
    count_preemptions: Callable[[], int] = count_preemptions,
) -> Timing:
    """Time a kernel until its spread is a third of what is noisy, or the time allowed ends.

    Two calls warm it up (memory is touched, code loaded), and the search for the number of calls that makes the clock's
    own cost negligible does so further. Calls of one sample follow each other without waiting, so on an accelerator the
    figure is throughput, not latency, unless the kernel waits; `clock` must wait for the device (see `make_clock`).
    """
    import torch
    from torch.utils.benchmark import Timer

    kernel()
    kernel()
    clock()
    threads = torch.get_num_threads()
    timer = Timer("kernel()", globals={"kernel": kernel}, timer=clock, num_threads=threads)
    preemptions = count_preemptions()
    measured = timer.adaptive_autorange(
        threshold=NOISY_SPREAD / 3, min_run_time=allowed.shortest, max_run_time=allowed.longest
    )
    preemptions = count_preemptions() - preemptions
    accepted = PREEMPTED_RATE * threads * sum(measured.times) * measured.number_per_run
    return Timing.of(
        measured.times,
        calls=measured.number_per_run,
        preempted=preemptions > max(accepted, len(measured.times) / 4),  # a quarter of the samples moves a quartile
    )


def time_passes(kernel: Kernel, seconds: float, clock: Clock = time.perf_counter) -> Timing:
    """Time a kernel that may take seconds a call, such as a pass over the network, within about so many seconds.

    The first call warms up, unless it alone takes half of the time: then it is the only sample.
    """
    began = clock()
    kernel()
    first = clock() - began
    if first > seconds / 2:
        return Timing.of([first])
    times: list[float] = []
    while clock() - began < seconds:
        start = clock()
        kernel()
        times.append(clock() - start)
    return Timing.of(times)


def cut_blocks(iterations: list[Iteration], blocks: int = 5) -> list[list[Iteration]]:
    """Cut iterations into consecutive blocks, whose means are the samples of a stream: its batches come in bursts."""
    length = max(1, len(iterations) // blocks)
    return [iterations[start : start + length] for start in range(0, len(iterations) - length + 1, length)]


def read_busy_cores() -> tuple[float, float]:
    """Return the core-seconds for which all processes together, and this one alone, have kept the processor busy."""
    import psutil

    everyone, own = psutil.cpu_times(), psutil.Process().cpu_times()
    idle = everyone.idle + getattr(everyone, "iowait", 0.0)
    return sum(everyone) - getattr(everyone, "guest", 0.0) - idle, own.user + own.system


def make_clock(device: str) -> Clock:
    """Return a clock that reads the time when all work given to the device is done."""
    if device == "cpu":
        return time.perf_counter
    return partial(_wait_and_read, device)


def _wait_and_read(device: str) -> float:
    import torch

    torch.cuda.synchronize(device)
    return time.perf_counter()
