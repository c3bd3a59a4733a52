"""Steps that say what the hardware is and how fast: measured in tasks.devices, and for the stream in .stream."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger

from tasks.errors import ConfigurationError
from tasks.parameters import BenchmarkParameters
from tasks.sources import Sources

if TYPE_CHECKING:
    from tasks.benchmark.stream import Measured
    from tasks.devices import Figure, Hardware, Plan, Prediction

STREAM_SHARE = 0.5  # of the time budget, where there are shards to stream
BUSY_CORES = 0.1  # of other processes, from which the figures are said to be disturbed


@task(name="describe hardware", task_run_name="describe hardware", cache_policy=NO_CACHE)
def describe_hardware() -> dict[str, Any]:
    """Describe this machine as plain JSON types; a markdown artifact shows it."""
    from tasks.devices import describe

    hardware = describe()
    create_markdown_artifact(
        key="hardware", description="What this run computes on", markdown=write_description(asdict(hardware))
    )
    return asdict(hardware)


def check_devices(given: BenchmarkParameters) -> None:
    """Raise ConfigurationError where CUDA is asked for and there is none."""
    if given.device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError(
            "device is cuda, and torch finds no CUDA device here: use device=auto, which measures what there is"
        )


def make_plan(given: BenchmarkParameters) -> Plan:
    """Return the mode's plan with the size and the time budget that were asked for."""
    from tasks.devices import PLANS

    plan = PLANS[given.mode]
    return replace(plan, max_size=given.max_size or plan.max_size, budget=given.time_budget or plan.budget)


@task(name="measure hardware", task_run_name="measure hardware", cache_policy=NO_CACHE)
def measure_hardware(
    given: BenchmarkParameters, sources: Sources | None = None, manifest: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure the devices and, where a manifest is given, the stream; return all of it as plain JSON types.

    {"mode", "seconds", "hardware", "names": {device: its name}, "figures", "ratios": rows as of Figure and Ratio,
    "predictions": as of Prediction, "left_out", "notes": sentences}
    """
    from tasks.devices import choose_devices, compare_devices, describe, measure, plan_jobs
    from tasks.devices.timing import read_busy_cores

    began, busy = time.perf_counter(), read_busy_cores()
    check_devices(given)
    hardware, plan = describe(), make_plan(given)
    devices, left_out = choose_devices(hardware, given.device)
    streamed, figures = None, []
    if sources and manifest:
        streamed = _measure_stream(manifest, sources, given, devices, hardware, STREAM_SHARE * plan.budget)
        figures += streamed.figures
    else:
        left_out.append("The stream's rates, and iterations over it: no shards were named.")
    budget = max(plan.budget - (time.perf_counter() - began), plan.budget * (1 - STREAM_SHARE))
    measured, missed = measure(plan_jobs(devices, plan), hardware, replace(plan, budget=budget))
    figures += measured
    seconds = time.perf_counter() - began
    notes = _note_others(busy, read_busy_cores(), seconds)
    for sentence in (*hardware.left_out, *left_out, *missed, *notes):
        get_run_logger().info("%s", sentence)
    return {
        "mode": given.mode,
        "seconds": seconds,
        "hardware": asdict(hardware),
        "names": {device: hardware.get_name(device) for device in devices},
        "figures": [figure.to_row() for figure in figures],
        "ratios": [ratio.to_row() for ratio in compare_devices(figures)],
        "predictions": [asdict(each) for each in _predict_all(figures, devices, streamed)],
        "left_out": [*hardware.left_out, *left_out, *missed],
        "notes": notes,
    }


def _measure_stream(
    manifest: dict[str, Any],
    sources: Sources,
    given: BenchmarkParameters,
    devices: tuple[str, ...],
    hardware: Hardware,
    seconds: float,
) -> Measured:
    from tasks.benchmark.stream import measure_stream
    from tasks.streaming import Manifest

    return measure_stream(Manifest.from_dict(manifest), sources, given, devices, hardware.cpu.usable, seconds)


def _predict_all(figures: list[Figure], devices: tuple[str, ...], streamed: Measured | None) -> list[Prediction]:
    """Predict iterations on every device; what was measured of them is set beside."""
    from tasks.benchmark.stream import BATCH_ROWS
    from tasks.devices import predict

    if streamed is None:
        return [prediction for device in devices for prediction in predict(figures, device, BATCH_ROWS)]
    return [
        replace(prediction, measured=streamed.iterations[device, prediction.data].seconds)
        for device in devices
        for prediction in predict(figures, device, streamed.rows, streamed.rates)
    ]


def _note_others(before: tuple[float, float], after: tuple[float, float], seconds: float) -> list[str]:
    """Say so where other processes kept the processor busy meanwhile."""
    others = ((after[0] - before[0]) - (after[1] - before[1])) / seconds
    if others < BUSY_CORES:
        return []
    return [f"Other processes kept {others:.1f} cores of this machine busy meanwhile: on a quiet one it may be faster."]


def write_description(hardware: dict[str, Any]) -> str:
    """Return the description as markdown for people."""
    cpu, memory, torch = hardware["cpu"], hardware["memory"], hardware["torch"]
    quota = f", {cpu['quota']:g} by its control group" if cpu["quota"] else ""
    limit = f" of {memory['total'] / 2**30:.1f}, limited by its control group" if memory["limit"] else ""
    lines = [
        f"- **Processor**: {cpu['model']}, {cpu['usable']:g} cores usable "
        f"(of {cpu['logical_cores']}; {cpu['affinity']} by affinity{quota})",
        f"- **Memory**: {memory['usable'] / 2**30:.1f} GiB{limit}; {memory['available'] / 2**30:.1f} GiB available",
        f"- **torch** {torch['version']}: {torch['threads']} threads, {torch['cpu_capability']}; a new tensor is "
        f"{torch['default_dtype']} on {torch['default_device']}",
        f"- **System**: {hardware['platform']}, Python {hardware['python']}",
        *(_write_cuda(device) for device in hardware["cuda"]),
        *(f"- Left out: {sentence}" for sentence in hardware["left_out"]),
    ]
    table = hardware["nvidia_smi"]
    return "\n".join(lines) + (f"\n\n```\n{table}\n```" if table else "")


def _write_cuda(device: dict[str, Any]) -> str:
    facts = {
        "compute capability": device["capability"],
        "memory": f"{device['memory'] / 2**30:.1f} GiB",
        "multiprocessors": device["multiprocessors"],
        "clock": device["clock"] and f"{device['clock']:g} MHz",
        "memory clock": device["memory_clock"] and f"{device['memory_clock']:g} MHz",
        "memory bus": device["memory_bus"] and f"{device['memory_bus']} bits",
        "bandwidth limit": device["bandwidth_limit"] and f"{device['bandwidth_limit'] / 1e9:.0f} GB/s",
        "link limit": device["link_limit"]
        and f"{device['link_limit'] / 1e9:.0f} GB/s (PCIe {device['link_generation']} × {device['link_width']})",
        "driver": device["driver"],
    }
    told = ", ".join(f"{name} {value}" for name, value in facts.items() if value)
    return f"- **cuda:{device['index']}**: {device['name']}; {told}"
