"""Completes the records of runs whose MLflow server was away at their end: `python -m flows.replaying`."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.commandline import parameters, run
from tasks.errors import TrackingError
from tasks.parameters import ReplayParameters
from tasks.tracking.recovery import complete_records


@flow(name="replaying")
@parameters(ReplayParameters)
def replay(**_: Any) -> str:
    """Send what MLflow lacks of the runs that ended without it, and end them there."""
    from tasks.tracking.client import connect

    done = complete_records(connect())
    if done.problems:
        raise TrackingError("; ".join(done.problems))
    return f"{len(done.completed)} records completed"


if __name__ == "__main__":
    run(replay, ReplayParameters, "flows.replaying", check=lambda given: given)
