"""The tracking store: how it is reached, and how a run begins there, or goes on.

What a run leaves is written to a local outbox first (`.outbox`), and metrics are sent from a thread in batches
(`.sending`), so that no outage of the server loses one or slows the loop. `.recovery` completes the rest.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from tasks.errors import TrackingError
from tasks.state import STATE
from tasks.tracking.outbox import STATUS, keeping, outboxes
from tasks.tracking.views import NOTE, describe_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient

    Client: TypeAlias = MlflowClient

MOST_PARAMETER_CHARACTERS = 6000  # MLflow's own limit
REACHABLE_WITHIN_SECONDS = 20.0
USER_INFO = re.compile(r"://[^/@\s]+@")


def tracking_uri() -> str:
    """Return MLFLOW_TRACKING_URI where it is set, else `local_store`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store()


def local_store() -> str:
    """Return the SQLite store in STATE, which is used where no other is configured."""
    return f"sqlite:///{(STATE / 'mlflow.db').absolute()}"


def connect() -> Client:
    """Return a client of the tracking store, which is there and answers; raise TrackingError within 30 s else."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # the flow's log names the run's page
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it tells of every table that it makes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # the default of 7 blocks for four minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    uri = tracking_uri()
    if urlsplit(uri).scheme in ("http", "https"):
        _await_server(uri)
    else:
        STATE.mkdir(parents=True, exist_ok=True)
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    with translated(f"the MLflow store at {redact(uri)} does not answer"):
        client.search_experiments(max_results=1)
    return client


def _await_server(uri: str) -> None:
    """Raise TrackingError unless an HTTP server answers at the address within some seconds."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    deadline = time.monotonic() + REACHABLE_WITHIN_SECONDS
    while True:
        try:
            with urlopen(f"{redact(uri).rstrip('/')}/health", timeout=5):
                return
        except HTTPError:
            return  # it answers, and MLflow's client will say what is wrong
        except (URLError, OSError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "reason", error)
                raise TrackingError(
                    f"no MLflow server at {redact(uri)} ({reason}): start it, or correct MLFLOW_TRACKING_URI; "
                    "nothing was trained"
                ) from error
            time.sleep(1)


def redact(uri: str) -> str:
    """Return a URI for people: without the user and password that it may hold."""
    return USER_INFO.sub("://", uri)


@contextmanager
def translated(problem: str) -> Iterator[None]:
    """Raise TrackingError, which begins with the problem, where MLflow or its store fails in the block."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = redact(" ".join(str(error).split()))[:400]
        raise TrackingError(f"{problem}: {text}") from None  # the cause may hold the password of the tracking URI


def ensure_experiment(client: Client, name: str) -> str:
    """Return the id of the experiment of this name; it is made, or restored from the bin, where it is not there.

    Where nobody has described it, it is described.
    """
    existing = client.get_experiment_by_name(name)
    if existing and existing.lifecycle_stage == "deleted":
        client.restore_experiment(existing.experiment_id)
    experiment_id = str(existing.experiment_id) if existing else _make_experiment(client, name)
    if not (existing and existing.tags.get(NOTE)):
        for key, value in describe_experiment(name, experiment_id, redact(client.tracking_uri)).items():
            client.set_experiment_tag(experiment_id, key, value)
    return experiment_id


def _make_experiment(client: Client, name: str) -> str:
    from mlflow.exceptions import MlflowException

    ours = client.tracking_uri == local_store()  # any other store knows where its artifacts belong
    location = (STATE / "mlartifacts" / name.replace("/", "-")).absolute().as_uri() if ours else None
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        created = client.get_experiment_by_name(name)  # another run may have made it in the meantime
        if created is None:
            raise
        return str(created.experiment_id)


def begin(
    client: Client, *, experiment: str, name: str, parameters: Mapping[str, object], tags: Mapping[str, str]
) -> str:
    """Start a run with its parameters and tags; return its id."""
    from mlflow.entities import Param

    with translated("the MLflow run cannot be started"):
        run = client.create_run(ensure_experiment(client, experiment), run_name=name, tags=dict(tags))
        run_id = str(run.info.run_id)
        params = [Param(key, format_parameter(value)[:MOST_PARAMETER_CHARACTERS]) for key, value in parameters.items()]
        client.log_batch(run_id, params=params)
    return run_id


def reopen(client: Client, run_id: str, tags: Mapping[str, str]) -> None:
    """Go on with a run that was stopped: RUNNING again, with the tags of who goes on."""
    with translated(f"the MLflow run {run_id} cannot be gone on with"):
        client.update_run(run_id, status="RUNNING")
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        if "shardline.error" in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, "shardline.error")
    outbox = outboxes() / run_id
    with keeping(outbox):
        (outbox / STATUS).unlink(missing_ok=True)


def format_parameter(value: object) -> str:
    """Return a parameter's value as it is recorded: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
