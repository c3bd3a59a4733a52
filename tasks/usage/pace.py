"""How long a row of training takes on this machine: by its last benchmark, else by what the preview has read."""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.devices.benchmark import FILE, Benchmark
from tasks.devices.prediction import Prediction, StreamRates, leave_out, predict
from tasks.devices.timing import SampleTime
from tasks.facts import FirstRead
from tasks.redaction import redact
from tasks.tracking.recorded import find_runs, read_artifact
from tasks.tracking.views import experiment_beside
from tasks.usage.forecast import Pace
from tasks.usage.stepping import build_step

if TYPE_CHECKING:
    from tasks.devices.description import Hardware
    from tasks.tracking.client import Client

STREAMING = ("fetch", "receive", "decode")  # stages that are not repeated where the cache has the rows
STEP_ROWS = 2**16  # of the step that is timed: some milliseconds
STEP_TIME = SampleTime(shortest=0.005, longest=0.02)


def find_pace(
    client: Client, experiment: str, shards: str, device: str, read: FirstRead | None, hardware: Hardware
) -> Pace | None:
    """Return the pace of the last benchmark of these shards on this host, else one by the first rows; None: unknown."""
    measured = find_benchmark(client, experiment, shards)
    if measured and (pace := pace_of(measured[1].predictions, device, f"benchmark {measured[0]} of this machine")):
        return pace
    if read is None or read.decode_seconds <= 0:
        return None
    return pace_of(predict_by(read, device, hardware), device, "what reading the first rows took, roughly")


def find_benchmark(client: Client, experiment: str, shards: str) -> tuple[str, Benchmark] | None:
    """Return the name and the benchmark of the last run that measured these shards on this host."""
    tags = {"host.name": platform.node()}
    for run in find_runs(client, experiment_beside(experiment, "benchmarks"), status="FINISHED", tags=tags):
        if run.params.get("shards") == redact(shards):
            text = read_artifact(client, run.run_id, FILE)
            return (run.name, Benchmark.from_json(text)) if text else None
    return None


def predict_by(read: FirstRead, device: str, hardware: Hardware) -> list[Prediction]:
    """Predict iterations by the rates at which the first shards were read, and a step that is timed now.

    Each loading thread is taken to do as much as the preview's did, one a core; a cache has nothing to fetch.
    """
    from tasks.devices.kernels import make_step, make_transfers
    from tasks.devices.measurement import measure
    from tasks.devices.planning import PLANS

    jobs = [make_step(device, "float64", build_step, STEP_ROWS), *([] if device == "cpu" else make_transfers(device))]
    figures, _ = measure(jobs, hardware, replace(PLANS["quick"], samples=STEP_TIME))
    cores = max(1.0, hardware.cpu.usable)
    rates = StreamRates(
        fetch=read.bytes * cores / read.fetch_seconds if read.fetch_seconds else math.inf,
        receive=math.inf,
        decode=read.rows * cores / read.decode_seconds,
        prepare=math.inf,
        row_bytes=read.bytes / read.rows,
        numbers=read.columns,
    )
    return predict(figures, device, STEP_ROWS, rates)


def pace_of(predictions: Sequence[Prediction], device: str, source: str) -> Pace | None:
    """Return the pace that predictions of a device come to; None where one of the two kinds of data is missing."""
    found = {each.data: each for each in predictions if each.device == device}
    if not {"streamed", "resident"} <= found.keys():
        return None
    streamed, resident = found["streamed"], found["resident"]
    return Pace(
        streamed=(streamed.measured or streamed.seconds) / streamed.rows,
        cached=leave_out(streamed, STREAMING).seconds / streamed.rows,
        resident=(resident.measured or resident.seconds) / resident.rows,
        source=source,
    )
