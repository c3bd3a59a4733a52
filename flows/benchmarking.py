"""What the hardware is and how fast, for this job: `python -m flows.benchmarking --help` shows all.

The flow's parameters are those of `tasks.parameters.BenchmarkParameters`. Where shards are named (or a BUCKET_ID is),
the stream and whole training iterations are measured too.
"""

from __future__ import annotations

import platform
from dataclasses import replace
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import JsonValue

from flows.commandline import parameters, run
from flows.names import unless_named
from tasks.benchmark.hardware import check_devices, make_plan, measure_hardware
from tasks.benchmark.report import load_benchmark, report_benchmark
from tasks.credentials import verify_sources
from tasks.data import locate_shards
from tasks.parameters import PRESETS, BenchmarkParameters, Shards, Source
from tasks.policy import step
from tasks.runs.lifecycle import tracked
from tasks.sources import Sources, configured_bucket_id, read_only_used, resolve_sources
from tasks.tracking.views import experiment_beside

load = step("load the other benchmark")(load_benchmark)


def name_run() -> str:
    """Return a name that says how much was measured where: `quick · hostname`."""
    return f"{BenchmarkParameters(**flow_run.parameters).mode} · {platform.node()}"


@flow(name="benchmarking", flow_run_name=unless_named(name_run))
@parameters(BenchmarkParameters)
def benchmark(**parameters: Any) -> State[str]:
    """Measure what the CPU and the GPUs here do for training, and say whether a GPU is worth its price."""
    given = BenchmarkParameters(**parameters)
    check_devices(given)
    against = load(given.against) if given.against else None
    sources, manifest = find_sources(given), None
    if sources:
        sources, _ = verify_sources(sources, given)
        found = locate_shards(sources, as_source(given)).manifest
        manifest = read_only_used(found, given, PRESETS["default"].derive)
    tags = {"shardline.flow": "benchmarking"} | ({"shardline.fingerprint": manifest.fingerprint} if manifest else {})
    experiment = experiment_beside(given.experiment, "benchmarks")
    with tracked(experiment, record_settings(given, sources), tags) as mlflow_run:
        measured = measure_hardware(given, sources, manifest)
        verdict = report_benchmark(mlflow_run, measured, against)
    return Completed(message=verdict, data=f"{verdict}\n\n  Look     {mlflow_run.pages}")


def find_sources(given: BenchmarkParameters) -> Sources | None:
    """Return the shards that training would read, or None where nothing names any."""
    if not (given.shards or given.bucket_id or configured_bucket_id()):
        return None
    return replace(resolve_sources(as_source(given)), test_shards=None)


def as_source(given: BenchmarkParameters) -> Source:
    """Return the parameters that say which shards are read, as the steps that read them take them."""
    return Source(**given.model_dump(include=set(Shards.model_fields)))


def record_settings(given: BenchmarkParameters, sources: Sources | None) -> dict[str, JsonValue]:
    """Return the parameters as MLflow records them: every null that was resolved is replaced by what it stands for."""
    plan = make_plan(given)
    resolved = {"max_size": plan.max_size, "time_budget": plan.budget}
    return given.model_dump() | resolved | ({"shards": sources.shards, "region": sources.region} if sources else {})


def check_parameters(given: BenchmarkParameters) -> None:
    """Answer what can be answered before anything is started; raises ConfigurationError."""
    check_devices(given)
    find_sources(given)


if __name__ == "__main__":
    run(benchmark, BenchmarkParameters, "flows.benchmarking", check_parameters)
