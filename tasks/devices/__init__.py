"""What the hardware is and how fast: a library that knows nothing of Prefect or MLflow.

`describe` says what there is; `measure` times the jobs that `plan_jobs` lays out into figures; `compare_devices` and
`compare_runs` set figures against each other; `predict` says what they mean for a training iteration; a `Benchmark` is
all of it. plots draws it, and wording says it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.devices.benchmark import Benchmark
    from tasks.devices.comparison import Ratio, compare_devices, compare_runs, find_win
    from tasks.devices.description import Hardware, describe, describe_cpu, describe_memory
    from tasks.devices.measurement import Figure, measure
    from tasks.devices.planning import PLANS, MeasuringPlan, choose_devices, plan_jobs
    from tasks.devices.prediction import Prediction, StreamRates, limit_speedup, predict

__all__ = [
    "PLANS",
    "Benchmark",
    "Figure",
    "Hardware",
    "MeasuringPlan",
    "Prediction",
    "Ratio",
    "StreamRates",
    "choose_devices",
    "compare_devices",
    "compare_runs",
    "describe",
    "describe_cpu",
    "describe_memory",
    "find_win",
    "limit_speedup",
    "measure",
    "plan_jobs",
    "predict",
]

_HOMES = {
    "benchmark": ("Benchmark",),
    "comparison": ("Ratio", "compare_devices", "compare_runs", "find_win"),
    "description": ("Hardware", "describe", "describe_cpu", "describe_memory"),
    "measurement": ("Figure", "measure"),
    "planning": ("PLANS", "MeasuringPlan", "choose_devices", "plan_jobs"),
    "prediction": ("Prediction", "StreamRates", "limit_speedup", "predict"),
}


def __getattr__(name: str) -> Any:
    """Import a name's module on its first use, so that importing the package costs nothing (PEP 562)."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
