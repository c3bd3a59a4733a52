"""Which figures a mode measures on which devices, in which order, and how long it may take.

The kernels stand in kernels; measurement runs the jobs.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from tasks.devices.description import Hardware
from tasks.devices.kernels import (
    BuildStep,
    Job,
    make_add,
    make_bandwidth,
    make_latency,
    make_product,
    make_step,
    make_transfers,
)
from tasks.devices.timing import SampleTime

Mode = Literal["quick", "standard", "thorough"]
CUDA_DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16")
LATENCIES = (1, 2**8, 2**16)  # elements of sums that are waited for too; larger ones take longer than the wait


@dataclass(frozen=True, kw_only=True)
class MeasuringPlan:
    """What a mode measures: sizes in elements (a + b, vectors) or rows of a square matrix, `budget` in seconds.

    `samples` is the time that one figure's samples may take.
    """

    budget: float
    samples: SampleTime
    max_size: int
    dtypes: tuple[str, ...]
    vector: int
    products: dict[str, tuple[int, ...]]
    product_dtypes: dict[str, tuple[str, ...]]


PLANS: dict[Mode, MeasuringPlan] = {
    "quick": MeasuringPlan(
        budget=8,
        samples=SampleTime(shortest=0.02, longest=0.25),
        max_size=2**22,
        dtypes=("float64", "float32"),
        vector=2**24,
        products={"cpu": (512,), "cuda": (4096,)},
        product_dtypes={"cpu": ("float64", "float32"), "cuda": CUDA_DTYPES},
    ),
    "standard": MeasuringPlan(
        budget=120,
        samples=SampleTime(shortest=0.1, longest=1.5),
        max_size=2**27,
        dtypes=("float64", "float32"),
        vector=2**26,
        products={"cpu": (1024,), "cuda": (8192,)},
        product_dtypes={"cpu": ("float64", "float32", "bfloat16"), "cuda": CUDA_DTYPES},
    ),
    "thorough": MeasuringPlan(
        budget=900,
        samples=SampleTime(shortest=0.5, longest=6),
        max_size=2**27,
        dtypes=("float64", "float32", "bfloat16"),
        vector=2**27,
        products={"cpu": (1024, 4096), "cuda": (8192, 16384)},
        product_dtypes={"cpu": ("float64", "float32", "bfloat16"), "cuda": CUDA_DTYPES},
    ),
}


def choose_devices(hardware: Hardware, wanted: Literal["auto", "cpu", "cuda"]) -> tuple[tuple[str, ...], list[str]]:
    """Return the devices to measure, the CPU first, and a sentence for each that is left out.

    Of several CUDA devices of one name the first is measured. No device where `cuda` is wanted and there is none.
    """
    if wanted == "cpu":
        return ("cpu",), [
            f"cuda:{device.index} ({device.name}): the device parameter says cpu." for device in hardware.cuda
        ]
    if not hardware.cuda:
        left_out = (
            "All CUDA figures (a + b, ratio to the CPU, copies, products, training step): there is no CUDA device."
        )
        return ("cpu",) if wanted == "auto" else (), [left_out]
    firsts = {device.name: device.index for device in reversed(hardware.cuda)}
    twins = [
        f"cuda:{device.index}: the same as cuda:{firsts[device.name]} ({device.name})."
        for device in hardware.cuda
        if firsts[device.name] != device.index
    ]
    return ("cpu", *(f"cuda:{index}" for index in sorted(firsts.values()))), twins


def plan_jobs(devices: Iterable[str], plan: MeasuringPlan, build_step: BuildStep) -> Iterator[Job]:
    """Yield the jobs: what the prediction needs first, then a + b by size, the devices in turn at each size.

    build_step: builds a training iteration from device, dtype and rows
    """
    devices = tuple(devices)
    for device in devices:
        for dtype in ("float64", "float32"):
            yield make_step(device, dtype, build_step)
        yield from make_bandwidth(device, plan.vector)
        if device != "cpu":
            yield from make_transfers(device)
            yield from (make_latency(device, "float64", size) for size in LATENCIES if size <= plan.max_size)
        kind = device.partition(":")[0]
        for size in plan.products[kind]:
            for dtype in plan.product_dtypes[kind]:
                yield make_product(device, dtype, size)
    for exponent in range(plan.max_size.bit_length()):
        for dtype in plan.dtypes:
            for device in devices:
                yield make_add(device, dtype, 2**exponent)
