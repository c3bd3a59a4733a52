"""What MLflow has of earlier runs, as plain facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.errors import TrackingError
from tasks.tracking.client import translated

if TYPE_CHECKING:
    from mlflow.entities import Run as MlflowRun

    from tasks.tracking.client import Client

NO_SUCH_RUN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # the latter for what cannot be a run's id


@dataclass(frozen=True, kw_only=True)
class RecordedRun:
    """A run as MLflow has it; `params` are texts, as `client.format_parameter` made them, `metrics` the last values."""

    run_id: str
    name: str
    experiment_id: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]


def find_run(client: Client, run_id: str) -> RecordedRun | None:
    """Return a run, or None where this store does not know it; raise TrackingError where it does not answer."""
    from mlflow.exceptions import MlflowException

    with translated(f"run {run_id} cannot be asked for"):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in NO_SUCH_RUN:
                raise
            return None
    return _describe(run)


def read_run(client: Client, run_id: str) -> RecordedRun:
    """Return a run that is there; raise TrackingError where it is not, or the store does not answer."""
    run = find_run(client, run_id)
    if run is None:
        raise TrackingError(f"MLflow does not know run {run_id}, which was there before: start again")
    return run


def find_runs(
    client: Client,
    experiment: str,
    *,
    status: str | None = None,
    tags: Mapping[str, str] | None = None,
    most: int = 100,
) -> list[RecordedRun]:
    """Return the newest runs of an experiment with this status and these tags; TrackingError without an answer."""
    criteria = [f"attributes.status = '{status}'"] if status else []
    criteria += [f"tags.`{key}` = '{value}'" for key, value in (tags or {}).items()]
    with translated(f"the runs of experiment {experiment} cannot be looked up"):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return []
        order = ["attributes.start_time DESC"]
        runs = client.search_runs([found.experiment_id], " and ".join(criteria), order_by=order, max_results=most)
        return [_describe(run) for run in runs]


def end_run(client: Client, run_id: str, status: str) -> None:
    """End a run as FINISHED, FAILED or KILLED."""
    with translated(f"run {run_id} cannot be ended"):
        client.set_terminated(run_id, status)


def read_artifact(client: Client, run_id: str, path: str) -> str | None:
    """Return the text of a run's artifact, or None where the run or the artifact is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(run_id, path)).read_text(encoding="utf-8")
    except (MlflowException, OSError):
        return None


def _describe(run: MlflowRun) -> RecordedRun:
    return RecordedRun(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name),
        experiment_id=str(run.info.experiment_id),
        status=str(run.info.status),
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
    )
