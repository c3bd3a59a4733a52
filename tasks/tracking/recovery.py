"""The end of a run's record: what its outbox holds is sent until MLflow has all of it, now or by a later run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger

from tasks.errors import TrackingError
from tasks.runs.resuming import PROCESS, is_gone

if TYPE_CHECKING:
    from mlflow import MlflowClient


def complete_records(client: MlflowClient) -> tuple[list[str], list[str]]:
    """Complete every outbox whose run has ended or whose process is gone: (ids completed, what failed)."""
    from tasks.tracking.outbox import held, outboxes

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

    from tasks.tracking.client import translated

    with translated(f"run {run_id} cannot be asked for"):
        try:
            tags: Mapping[str, str] = client.get_run(run_id).data.tags
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
    return tags


def complete_outbox(client: MlflowClient, outbox: Path, status: str | None = None) -> None:
    """Send an outbox until MLflow has all of it, end its run, delete it; else TrackingError, and the outbox stays.

    `status` is kept in the outbox for a later try; None is the one kept there, or KILLED where there is none.
    """
    from tasks.tracking.client import missing_rows, send_metrics, translated
    from tasks.tracking.outbox import read_metrics
    from tasks.tracking.registry import log_model, register

    run_id, kept = outbox.name, outbox / "status"
    if status is None:
        status = kept.read_text(encoding="utf-8") if kept.exists() else "KILLED"
    else:
        kept.write_text(status, encoding="utf-8")
    rows = read_metrics(outbox)
    with translated(f"record incomplete: what MLflow lacks of run {run_id} is kept in {outbox}"):
        missing = missing_rows(client, run_id, rows)
        send_metrics(client, run_id, missing)
        still = missing_rows(client, run_id, rows) if missing else []
        if still:
            raise TrackingError(
                f"record incomplete: MLflow has {len(rows) - len(still)} of {len(rows)} metrics of run {run_id}; "
                f"they are kept in {outbox}"
            )
        client.log_artifacts(run_id, str(outbox / "artifacts"))
        tags = outbox / "tags.json"
        for key, value in json.loads(tags.read_text(encoding="utf-8")).items() if tags.exists() else ():
            client.set_tag(run_id, key, value)
        log_inputs(client, run_id, outbox)
        if status == "FINISHED":
            register(client, run_id, outbox, log_model(client, run_id, outbox, rows))
        if client.get_run(run_id).info.status != "FINISHED":  # it may have been completed from another machine
            client.set_terminated(run_id, status)
    shutil.rmtree(outbox, ignore_errors=True)  # another process may complete it too


def log_inputs(client: MlflowClient, run_id: str, outbox: Path) -> None:
    """Log a run's data sets: a list of {context, dataset}, the latter with the fields of mlflow.entities.Dataset."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    from tasks.tracking.outbox import INPUTS

    path = outbox / INPUTS
    entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    inputs = [
        DatasetInput(Dataset(**entry["dataset"]), [InputTag("mlflow.data.context", entry["context"])])
        for entry in entries
    ]
    if inputs:
        client.log_inputs(run_id, inputs)
