"""What is timed: vector sums, memory traffic, copies between host and device, matrix products, the training step.

A `Job` says how much memory and work a kernel stands for before anything is allocated. How it is timed stands in
timing, which jobs run in measurement.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from tasks.devices.timing import Kernel

BuildStep = Callable[[str, str, int], Kernel]  # from device, dtype and rows

ITEM_BYTES = {"float64": 8, "float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}
BATCH_ROWS, FEATURES = 2**20, 8  # a batch of the training flow
BATCH_ELEMENTS = BATCH_ROWS * FEATURES


@dataclass(frozen=True, kw_only=True)
class Job:
    """One figure to be measured: `work` a call in `unit`, `memory` bytes on the device while it runs."""

    name: str
    device: str
    dtype: str
    size: int
    memory: int
    work: float
    unit: str
    build: Callable[[], Kernel]


def make_add(device: str, dtype: str, size: int) -> Job:
    """Return a + b of `size` elements, into new memory as the expression says; reads two and writes one."""
    traffic = 3 * size * ITEM_BYTES[dtype]
    build = partial(_build_add, device, dtype, size)
    return Job(name="add", device=device, dtype=dtype, size=size, memory=traffic, work=traffic, unit="B/s", build=build)


def make_latency(device: str, dtype: str, size: int) -> Job:
    """Return the same sum, each waited for before the next: from the call to the result, not how many a second."""
    build = partial(_build_latency, device, dtype, size)
    return replace(make_add(device, dtype, size), name="add_latency", build=build)


def make_bandwidth(device: str, size: int) -> Iterator[Job]:
    """Yield STREAM's copy (c = a) and triad (c = a + s·b) on float64 vectors that no cache should hold.

    As STREAM does, counts what the program reads and writes, not what a cache reads before it writes.
    Source: J. D. McCalpin, STREAM, https://www.cs.virginia.edu/stream/.
    """
    for name, vectors, build in (("copy", 2, _build_copy), ("triad", 3, _build_triad)):
        traffic = vectors * size * ITEM_BYTES["float64"]
        yield Job(
            name=name,
            device=device,
            dtype="float64",
            size=size,
            memory=traffic,
            work=traffic,
            unit="B/s",
            build=partial(build, device, size),
        )


def make_transfers(device: str, elements: int = BATCH_ELEMENTS) -> Iterator[Job]:
    """Yield copies of a batch between host and device, from and to pageable and pinned memory."""
    for name, to_device in (("host_to_device", True), ("device_to_host", False)):
        for kind, pinned in (("pageable", False), ("pinned", True)):
            moved = elements * ITEM_BYTES["float64"]
            yield Job(
                name=f"{name}_{kind}",
                device=device,
                dtype="float64",
                size=elements,
                memory=moved,
                work=moved,
                unit="B/s",
                build=partial(_build_transfer, device, elements, to_device, pinned),
            )


def make_product(device: str, dtype: str, size: int) -> Job:
    """Return the product of two square matrices of `size` rows: 2 size³ floating-point operations."""
    return Job(
        name="matmul",
        device=device,
        dtype=dtype,
        size=size,
        memory=3 * size**2 * ITEM_BYTES[dtype],
        work=2.0 * size**3,
        unit="FLOP/s",
        build=partial(_build_product, device, dtype, size),
    )


def make_step(device: str, dtype: str, build_step: BuildStep, rows: int = BATCH_ROWS) -> Job:
    """Return a training iteration on a batch on the device, as whoever trains builds it."""
    return Job(
        name="step",
        device=device,
        dtype=dtype,
        size=rows,
        memory=(FEATURES + 4) * rows * ITEM_BYTES[dtype],  # x, y, and about three vectors in between
        work=rows,
        unit="rows/s",
        build=partial(build_step, device, dtype, rows),
    )


def _make_vector(device: str, dtype: str, *shape: int) -> Any:
    import torch

    return torch.rand(*shape, dtype=getattr(torch, dtype), device=device)


def _build_add(device: str, dtype: str, size: int) -> Kernel:
    a, b = _make_vector(device, dtype, size), _make_vector(device, dtype, size)
    return lambda: a + b


def _build_latency(device: str, dtype: str, size: int) -> Kernel:
    import torch

    add = _build_add(device, dtype, size)

    def wait() -> None:
        add()
        torch.cuda.synchronize(device)

    return wait


def _build_copy(device: str, size: int) -> Kernel:
    a, c = _make_vector(device, "float64", size), _make_vector(device, "float64", size)
    return lambda: c.copy_(a)


def _build_triad(device: str, size: int) -> Kernel:
    import torch

    a, b, c = (_make_vector(device, "float64", size) for _ in range(3))
    return lambda: torch.add(a, b, alpha=3.0, out=c)


def _build_transfer(device: str, elements: int, to_device: bool, pinned: bool) -> Kernel:
    import torch

    host = torch.rand(elements, dtype=torch.float64, pin_memory=pinned)
    there = torch.rand(elements, dtype=torch.float64, device=device)
    target, source = (there, host) if to_device else (host, there)
    return lambda: target.copy_(source, non_blocking=pinned)  # from pageable memory CUDA waits anyway


def _build_product(device: str, dtype: str, size: int) -> Kernel:
    import torch

    stored = "float32" if dtype == "tf32" else dtype
    a, b, c = (_make_vector(device, stored, size, size) for _ in range(3))
    precision = "high" if dtype == "tf32" else "highest"

    def multiply() -> None:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            torch.mm(a, b, out=c)
        finally:
            torch.set_float32_matmul_precision(before)

    return multiply
