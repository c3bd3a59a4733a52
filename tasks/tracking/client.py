"""The record of a run in MLflow: the only module of the libraries that knows MLflow.

What a run leaves is written to a local outbox first, and metrics are sent from a thread in batches, so that no outage
of the server loses one or slows the loop. How the rest is completed at a run's end is in `tasks.tracking.recovery`.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tasks.errors import TrackingError
from tasks.tracking.outbox import STATE, Outbox, outboxes

if TYPE_CHECKING:
    from mlflow import MlflowClient

SEND_EVERY_SECONDS = 5.0
MOST_OF_THE_TIME = 0.01  # that sending may take from the loop
SECONDS_A_ROW = 0.00025  # at first: about what a SQLite store takes
MOST_METRICS_A_BATCH = 1000  # MLflow's own limit for log_batch
MOST_PARAMETER_CHARACTERS = 6000  # MLflow's own limit
REACHABLE_WITHIN_SECONDS = 20.0
SAVED_VIEW = "mlflow.sharedViewState.scores"
VIEWED = ("test_r2", "test_rmse", "test_rmse_exact_model", "test_rmse_mean_model", "train_r2", "train_rmse")
USER_INFO = re.compile(r"://[^/@\s]+@")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI where it is set, else a SQLite store under .shardline/ in the working directory."""
    return os.environ.get("MLFLOW_TRACKING_URI") or local_store()


def local_store() -> str:
    """The store that is used where no other is configured."""
    return f"sqlite:///{(STATE / 'mlflow.db').absolute()}"


def connect() -> MlflowClient:
    """A client of the tracking store, which is there and answers; else TrackingError, within 30 s."""
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
    with translated(f"the MLflow store at {shown(uri)} does not answer"):
        client.search_experiments(max_results=1)
    return client


def _await_server(uri: str) -> None:
    """Raise TrackingError unless an HTTP server answers at the address within some seconds."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    deadline = time.monotonic() + REACHABLE_WITHIN_SECONDS
    while True:
        try:
            with urlopen(f"{shown(uri).rstrip('/')}/health", timeout=5):
                return
        except HTTPError:
            return  # it answers, and MLflow's client will say what is wrong
        except (URLError, OSError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "reason", error)
                raise TrackingError(
                    f"no MLflow server at {shown(uri)} ({reason}): start it, or correct MLFLOW_TRACKING_URI; "
                    "nothing was trained"
                ) from error
            time.sleep(1)


def shown(uri: str) -> str:
    """A URI for people: without the user and password that it may hold."""
    return USER_INFO.sub("://", uri)


@contextmanager
def translated(problem: str) -> Iterator[None]:
    """MLflow's exceptions as TrackingError, cause kept."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = USER_INFO.sub("://", " ".join(str(error).split()))[:400]
        raise TrackingError(f"{problem}: {text}") from None  # the cause may hold the password of the tracking URI


def find_experiment(client: MlflowClient, name: str) -> str:
    """The id of the experiment of this name; it is made, or restored from the bin, where it is not there."""
    from mlflow.exceptions import MlflowException

    existing = client.get_experiment_by_name(name)
    if existing and existing.lifecycle_stage == "deleted":
        client.restore_experiment(existing.experiment_id)
    if existing:
        return str(existing.experiment_id)
    ours = client.tracking_uri == local_store()  # any other store knows where its artifacts belong
    location = (STATE / "mlartifacts" / name.replace("/", "-")).absolute().as_uri() if ours else None
    try:
        return str(client.create_experiment(name, artifact_location=location, tags={SAVED_VIEW: saved_view()}))
    except MlflowException:
        created = client.get_experiment_by_name(name)  # another run may have made it in the meantime
        if created is None:
            raise
        return str(created.experiment_id)


def saved_view() -> str:
    """A view of the experiment's runs as MLflow's page keeps it, under *Views*: it shows no metric by itself."""
    now = int(time.time() * 1000)
    columns = [*(f"metrics.`{key}`" for key in VIEWED), "attributes.`Models`"]
    state = {"selectedColumns": columns}
    return json.dumps({"name": "Scores", "createdAt": now, "updatedAt": now, "state": json.dumps(state)})


def begin(
    client: MlflowClient, *, experiment: str, name: str, parameters: Mapping[str, Any], tags: Mapping[str, str]
) -> str:
    """Start a run with its parameters and tags; its id."""
    from mlflow.entities import Param

    with translated("the MLflow run cannot be started"):
        run = client.create_run(find_experiment(client, experiment), run_name=name, tags=dict(tags))
        run_id = str(run.info.run_id)
        params = [Param(key, written(value)[:MOST_PARAMETER_CHARACTERS]) for key, value in parameters.items()]
        client.log_batch(run_id, params=params)
    return run_id


def reopen(client: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Go on with a run that was stopped: RUNNING again, with the tags of who goes on."""
    with translated(f"the MLflow run {run_id} cannot be gone on with"):
        client.update_run(run_id, status="RUNNING")
        for key, value in tags.items():
            client.set_tag(run_id, key, value)
        if "shardline.error" in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, "shardline.error")
    (outboxes() / run_id / "status").unlink(missing_ok=True)


def written(value: Any) -> str:
    """A parameter's value as it is recorded: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def sending(client: MlflowClient, outbox: Outbox) -> Iterator[None]:
    """Send the outbox's metrics to MLflow from a thread while the block runs; what fails to go stays in the outbox.

    No more of them are sent than take a hundredth of the time; what a fast loop tells beyond that waits for its end.
    """
    stop = threading.Event()

    def send() -> None:
        sent, ended, seconds_a_row = 0, time.monotonic(), SECONDS_A_ROW
        while not stop.wait(0.2):
            began = time.monotonic()
            if began - ended < SEND_EVERY_SECONDS or sent == len(outbox.rows):
                continue
            affordable = max(1, int((began - ended) * MOST_OF_THE_TIME / seconds_a_row))
            part = outbox.rows[sent : sent + min(affordable, MOST_METRICS_A_BATCH)]
            with suppress(Exception):  # sent again next time, or at the end
                send_metrics(client, outbox.run_id, part)
                sent += len(part)
            ended = time.monotonic()
            seconds_a_row = (ended - began) / len(part)

    sender = threading.Thread(target=send, name="mlflow-sender", daemon=True)
    sender.start()
    try:
        yield
    finally:
        stop.set()
        sender.join(timeout=30)


def send_metrics(client: MlflowClient, run_id: str, rows: Sequence[tuple[str, float, int, int]]) -> None:
    """Log rows in batches; identical rows are stored once, so sending them again is safe."""
    from mlflow.entities import Metric

    for at in range(0, len(rows), MOST_METRICS_A_BATCH):
        client.log_batch(run_id, metrics=[Metric(*row) for row in rows[at : at + MOST_METRICS_A_BATCH]])


def missing_rows(client: MlflowClient, run_id: str, rows: Sequence[tuple[str, float, int, int]]) -> list[Any]:
    """The rows whose metric has no value at their step yet: each has one, however often a step was repeated."""
    stored = {
        (metric.key, metric.step)
        for key in {row[0] for row in rows}
        for metric in client.get_metric_history(run_id, key)
    }
    return [row for row in rows if (row[0], row[3]) not in stored]


def histories(client: MlflowClient, outbox: Outbox, keys: Sequence[str]) -> dict[str, dict[int, float]]:
    """Metrics' values by step, from MLflow and from what is still in the outbox; TrackingError where MLflow is away."""
    stored: dict[str, dict[int, float]] = {}
    with translated(f"the history of run {outbox.run_id} cannot be read"):
        for key in keys:
            stored[key] = {metric.step: metric.value for metric in client.get_metric_history(outbox.run_id, key)}
    for key, value, _, step in outbox.rows:
        if key in stored:
            stored[key][step] = value
    return {key: dict(sorted(values.items())) for key, values in stored.items()}
