"""Records that could not be completed when their run ended: sent again, until MLflow has all of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.errors import TrackingError
from tasks.resuming import PROCESS, is_gone

if TYPE_CHECKING:
    from mlflow import MlflowClient


def complete_records(client: MlflowClient) -> tuple[list[str], list[str]]:
    """Complete every outbox whose run has ended or whose process is gone: (ids completed, what failed)."""
    from tasks.learning.outbox import held, outboxes
    from tasks.learning.record import complete_outbox

    completed, failed = [], []
    for outbox in sorted(outboxes().glob("*")):
        try:
            tags = tags_of(client, outbox.name)
            if tags is None or not ((outbox / "status").exists() or is_gone(tags.get(PROCESS))):
                continue  # of another store, or it runs
            with held(outbox) as free:
                if not free:
                    continue
                complete_outbox(client, outbox)
        except TrackingError as error:
            failed.append(str(error))
            continue
        completed.append(outbox.name)
        get_run_logger().info("The record of run %s is complete", outbox.name)
    return completed, failed


def tags_of(client: MlflowClient, run_id: str) -> Mapping[str, str] | None:
    """A run's tags, or None where this store does not know it; TrackingError where it does not answer."""
    from mlflow.exceptions import MlflowException

    from tasks.learning.record import translated

    with translated(f"run {run_id} cannot be asked for"):
        try:
            tags: Mapping[str, str] = client.get_run(run_id).data.tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    return tags
