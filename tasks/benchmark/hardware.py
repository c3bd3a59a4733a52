"""Steps that say what the hardware is and how fast: measured in tasks.devices, and for the stream in .stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from tasks.devices.benchmark import Benchmark
from tasks.devices.comparison import compare_devices
from tasks.devices.description import Hardware, describe
from tasks.devices.measurement import Figure, measure
from tasks.devices.planning import PLANS, MeasuringPlan, choose_devices, plan_jobs
from tasks.devices.prediction import Prediction, predict
from tasks.devices.timing import read_busy_cores
from tasks.devices.wording import write_description
from tasks.errors import ConfigurationError
from tasks.parameters import PRESETS, BenchmarkParameters
from tasks.policy import step
from tasks.sources import Sources
from tasks.streaming.manifest import Manifest
from tasks.usage.stepping import build_step

if TYPE_CHECKING:
    from tasks.benchmark.stream import StreamMeasurement

BATCH_ROWS = 2**20  # of a training batch; all rows there are where they are fewer
STREAM_SHARE = 0.5  # of the time budget, where there are shards to stream
BUSY_CORES = 0.1  # of other processes, from which the figures are said to be disturbed
NO_SHARDS = "The stream's rates, and iterations over it: no shards were named."


@step("describe hardware")
def describe_hardware() -> Hardware:
    """Describe this machine; a markdown artifact shows it."""
    hardware = describe()
    create_markdown_artifact(
        key="hardware", description="What this run computes on", markdown=write_description(hardware)
    )
    return hardware


def check_devices(given: BenchmarkParameters) -> None:
    """Raise ConfigurationError where CUDA is asked for and there is none."""
    if given.device != "cuda":
        return
    import torch

    if not torch.cuda.is_available():
        raise ConfigurationError(
            "device is cuda, and torch finds no CUDA device here: use device=auto, which measures what there is"
        )


def make_plan(given: BenchmarkParameters) -> MeasuringPlan:
    """Return the mode's plan with the size and the time budget that were asked for."""
    plan = PLANS[given.mode]
    return replace(plan, max_size=given.max_size or plan.max_size, budget=given.time_budget or plan.budget)


@step("measure hardware")
def measure_hardware(
    given: BenchmarkParameters, sources: Sources | None = None, manifest: Manifest | None = None
) -> Benchmark:
    """Measure the devices and, where a manifest is given, the stream of its shards.

    Raises ConfigurationError where CUDA is asked for and there is none, and what the stream raises.
    """
    began, busy = time.perf_counter(), read_busy_cores()
    check_devices(given)
    hardware, plan = describe(), make_plan(given)
    devices, left_out = choose_devices(hardware, given.device)
    if sources and manifest:
        stream = _measure_stream(given, sources, manifest, devices, hardware.cpu.usable, STREAM_SHARE * plan.budget)
    else:
        stream = None
        left_out.append(NO_SHARDS)
    budget = max(plan.budget - (time.perf_counter() - began), plan.budget * (1 - STREAM_SHARE))
    measured, missed = measure(plan_jobs(devices, plan, build_step), hardware, replace(plan, budget=budget))
    figures = (*(stream.figures if stream else ()), *measured)
    seconds = time.perf_counter() - began
    benchmark = Benchmark(
        mode=given.mode,
        seconds=seconds,
        hardware=hardware,
        names={device: hardware.get_name(device) for device in devices},
        figures=figures,
        ratios=tuple(compare_devices(figures)),
        predictions=tuple(_predict_all(figures, devices, stream)),
        left_out=(*hardware.left_out, *left_out, *missed),
        notes=tuple(_note_others(busy, read_busy_cores(), seconds)),
    )
    for sentence in (*benchmark.left_out, *benchmark.notes):
        get_run_logger().info("%s", sentence)
    return benchmark


def _measure_stream(
    given: BenchmarkParameters,
    sources: Sources,
    manifest: Manifest,
    devices: Sequence[str],
    cores: float,
    seconds: float,
) -> StreamMeasurement:
    """Measure the stream as a training with the default preset would use it."""
    from tasks.benchmark.stream import measure_stream
    from tasks.learning.features import Features

    features = Features.choose(
        manifest.columns,
        target=given.target,
        features=given.features,
        derive=PRESETS["default"].derive,
        skip_missing=True,
    )
    return measure_stream(
        manifest,
        features,
        batch_size=min(BATCH_ROWS, manifest.rows),
        devices=devices,
        cores=cores,
        seconds=seconds,
        storage_options=sources.storage_options(manifest.shards[0].uri),
    )


def _predict_all(
    figures: Sequence[Figure], devices: Sequence[str], stream: StreamMeasurement | None
) -> list[Prediction]:
    """Predict iterations on every device; what was measured of them is set beside."""
    if stream is None:
        return [prediction for device in devices for prediction in predict(figures, device, BATCH_ROWS)]
    return [
        replace(prediction, measured=stream.iterations[device, prediction.data].seconds)
        for device in devices
        for prediction in predict(figures, device, stream.rows, stream.rates)
    ]


def _note_others(before: tuple[float, float], after: tuple[float, float], seconds: float) -> list[str]:
    """Say so where other processes kept the processor busy meanwhile."""
    others = ((after[0] - before[0]) - (after[1] - before[1])) / seconds
    if others < BUSY_CORES:
        return []
    return [f"Other processes kept {others:.1f} cores of this machine busy meanwhile: on a quiet one it may be faster."]
