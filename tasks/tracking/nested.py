"""Runs within a run, such as a search's trials: each recorded at once when it has ended, in one batch."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tasks.redaction import redact_all
from tasks.tracking.client import MOST_PARAMETER_CHARACTERS, format_parameter, translated

if TYPE_CHECKING:
    from tasks.tracking.client import Client

PARENT = "mlflow.parentRunId"
NUMBER = "shardline.trial"
MOST_METRICS = 1000  # in a batch: MLflow's own limit


@dataclass(frozen=True, kw_only=True)
class NestedRun:
    """A run that has ended: its number among its parent's, and what is recorded of it.

    series: (step, value) of each metric by name
    """

    number: int
    status: Literal["FINISHED", "KILLED", "FAILED"]
    parameters: Mapping[str, object]
    series: Mapping[str, Sequence[tuple[int, float]]]
    tags: Mapping[str, str]


def record_nested(client: Client, parent: str, runs: Sequence[NestedRun]) -> None:
    """Record ended runs under their parent, each in one batch; TrackingError where MLflow does not take them."""
    from mlflow.entities import Metric, Param

    with translated(f"the trials of run {parent} cannot be recorded"):
        experiment = client.get_run(parent).info.experiment_id
        now = time.time_ns() // 1_000_000
        for run in runs:
            tags = redact_all({PARENT: parent, NUMBER: str(run.number), **run.tags})
            made = client.create_run(experiment, run_name=f"trial {run.number}", tags=tags)
            metrics = [Metric(key, value, now, at) for key, values in run.series.items() for at, value in values]
            given = redact_all(run.parameters)
            params = [Param(key, format_parameter(value)[:MOST_PARAMETER_CHARACTERS]) for key, value in given.items()]
            client.log_batch(made.info.run_id, metrics=metrics[:MOST_METRICS], params=params)
            client.set_terminated(made.info.run_id, run.status)


def end_unknown(client: Client, parent: str, known: Sequence[int]) -> None:
    """Mark as KILLED the nested runs whose numbers are not known: who recorded them was killed before it said so."""
    with translated(f"the trials of run {parent} cannot be looked up"):
        experiment = client.get_run(parent).info.experiment_id
        found, token = [], None
        while True:
            page = client.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'", page_token=token)
            found += page
            token = page.token
            if not token:
                break
        for run in found:
            if int(run.data.tags[NUMBER]) not in known and run.info.status != "KILLED":
                client.set_terminated(run.info.run_id, "KILLED")
