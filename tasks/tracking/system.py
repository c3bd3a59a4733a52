"""How busy the machine is while a run trains, as MLflow's own system metrics: they stand on a tab of the run's page."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasks.tracking.client import Client

SAMPLE_SECONDS = 10.0
SAMPLES = 3  # of which a value is the mean: a run that is over in half a minute has none


@contextmanager
def watching_system(client: Client, run_id: str) -> Iterator[None]:
    """Send CPU, memory, disk, network and GPU figures to MLflow while the block runs; what fails to go is left out."""
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(
        run_id,
        sampling_interval=SAMPLE_SECONDS,
        samples_before_logging=SAMPLES,
        resume_logging=True,
        tracking_uri=client.tracking_uri,
    )
    monitor.start()
    try:
        yield
    finally:
        monitor.finish()
