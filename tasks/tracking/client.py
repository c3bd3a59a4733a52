"""The tracking store: how it is reached, and how a run begins there, or goes on.

What a run leaves is written to a local outbox first (`.outbox`), and metrics are sent from a thread in batches
(`.sending`), so that no outage of the server loses one or slows the loop. `.recovery` completes the rest.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import urlsplit

from tasks.errors import TrackingError
from tasks.redaction import mask, passwords_in, redact_all, redact_text
from tasks.state import STATE
from tasks.tracking.outbox import STATUS, keeping, outboxes
from tasks.tracking.views import NOTE, describe_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from sqlalchemy.engine import URL

    Client: TypeAlias = MlflowClient

MOST_PARAMETER_CHARACTERS = 6000  # MLflow's own limit
REACHABLE_WITHIN_SECONDS = 20.0
DATABASES = ("postgresql", "mysql", "mariadb", "mssql")
SILENT_SECONDS = 12.0  # of a database; a call may wait twice: on an old connection, and for a new one
POSTGRESQL_LIMITS = {"connect_timeout": "10", "tcp_user_timeout": "12000"}  # s, ms
MYSQL_LIMITS = {"connect_timeout": "10", "read_timeout": "12", "write_timeout": "12"}  # s


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
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")  # of files that are there at once
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")  # the default of 7 blocks for four minutes
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    uri = tracking_uri()
    scheme = uri.partition(":")[0].partition("+")[0]
    if scheme in ("http", "https"):
        _await_server(uri)
    elif scheme in DATABASES:
        uri = _await_database(uri)
    else:
        with translated(f"the folder {STATE} cannot be made"):
            STATE.mkdir(parents=True, exist_ok=True)
    import mlflow

    with translated(f"the MLflow store at {show_uri(uri)} does not answer"):
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
        if scheme in DATABASES:  # its second connection, which would else be made, and waited for, at a run's end
            client.search_registered_models(max_results=1)
    return client


def _await_server(uri: str) -> None:
    """Raise TrackingError unless an HTTP server answers at the address within some seconds."""
    from urllib.error import HTTPError, URLError
    from urllib.request import urlopen

    _require_readable(uri)
    deadline = time.monotonic() + REACHABLE_WITHIN_SECONDS
    while True:
        try:
            with urlopen(f"{show_uri(uri).rstrip('/')}/health", timeout=5):
                return
        except HTTPError:
            return  # it answers, and MLflow's client will say what is wrong
        except (URLError, OSError) as error:
            if time.monotonic() > deadline:
                reason = getattr(error, "reason", error)
                raise TrackingError(
                    f"no MLflow server at {show_uri(uri)} ({reason}): start it, or correct MLFLOW_TRACKING_URI; "
                    "nothing was trained"
                ) from error
            time.sleep(1)


def _await_database(uri: str) -> str:
    """Return the URI of a database that answers, with limits to how long it may take; TrackingError for another.

    MLflow itself would try for minutes, and waits without end for a host that takes a connection and says nothing.
    """
    import sqlalchemy

    url = _require_readable(uri)
    if url.get_backend_name() == "postgresql":
        url = url.update_query_dict({**POSTGRESQL_LIMITS, **url.query})
        if url.get_driver_name() == "psycopg2":
            _limit_silence()
    elif url.get_backend_name() in ("mysql", "mariadb"):
        url = url.update_query_dict({**MYSQL_LIMITS, **url.query})
    deadline = time.monotonic() + REACHABLE_WITHIN_SECONDS
    while True:
        problem = _within(deadline - time.monotonic(), lambda: sqlalchemy.create_engine(url).connect().close())
        if problem is None:
            return url.render_as_string(hide_password=False)
        if time.monotonic() > deadline - 1 or isinstance(problem, ImportError):
            told = _hide_secrets(" ".join(str(problem).split()))[:400]
            raise TrackingError(
                f"no database at {show_uri(uri)} ({told}): start it, or correct MLFLOW_TRACKING_URI; nothing was "
                "trained"
            ) from None  # the cause may hold the password
        time.sleep(1)


def _limit_silence() -> None:
    """Let every call of psycopg2 in this process fail where its server says nothing for so long: it knows no limit."""
    try:
        from psycopg2 import OperationalError  # type: ignore[import-untyped]
        from psycopg2.extensions import POLL_OK, POLL_READ, connection, set_wait_callback  # type: ignore[import-untyped]
    except ImportError:
        return  # told when it is opened

    def wait(waiting: connection) -> None:
        while (state := waiting.poll()) != POLL_OK:
            answer = select.poll()
            answer.register(waiting, select.POLLIN if state == POLL_READ else select.POLLOUT)
            if not answer.poll(SILENT_SECONDS * 1000):
                raise OperationalError(f"no answer within {SILENT_SECONDS:g} s")

    set_wait_callback(wait)


def _within(seconds: float, call: Callable[[], object]) -> Exception | None:
    """Return what a call raised, TimeoutError where it takes longer, or None; its thread is not waited for then."""
    found: list[Exception | None] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            found.append(error)
        else:
            found.append(None)

    thread = threading.Thread(target=run, name="mlflow-database", daemon=True)
    thread.start()
    thread.join(max(seconds, 0.1))
    return found[0] if found else TimeoutError(f"no answer within {REACHABLE_WITHIN_SECONDS:g} s")


def _require_readable(uri: str) -> URL:
    """Return a tracking URI as the libraries that open it parse it; TrackingError where they would cut a password."""
    from sqlalchemy.engine import URL, make_url
    from sqlalchemy.exc import ArgumentError

    try:
        if uri.startswith(("http://", "https://")):
            parts = urlsplit(uri)
            url = URL.create(parts.scheme, host=parts.hostname, port=parts.port, database=parts.path)
        else:
            url = make_url(uri)
    except (ArgumentError, ValueError):
        url = None
    if url is None or "@" in f"{url.host}{url.database}":
        raise TrackingError(
            f"MLFLOW_TRACKING_URI ({show_uri(uri)}) cannot be read: in its user and password, write @ as %40, / as "
            "%2F, ? as %3F, # as %23 and : as %3A; nothing was trained"
        )
    return url


def show_uri(uri: str) -> str:
    """Return the tracking URI for people: without all that stands before its last @, and without its query."""
    scheme, separator, rest = uri.partition("://")
    return (
        uri if scheme in ("sqlite", "file", "") else f"{scheme}{separator}{rest.rpartition('@')[2].partition('?')[0]}"
    )


def _hide_secrets(text: str) -> str:
    """Return a text without the tracking URI's user and password, and without those of other addresses."""
    return redact_text(mask(text, passwords_in(tracking_uri())))


@contextmanager
def translated(problem: str) -> Iterator[None]:
    """Raise TrackingError, which begins with the problem, where MLflow or its store fails in the block."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        text = _hide_secrets(" ".join(str(error).split()))[:400]
        raise TrackingError(f"{problem}: {text}") from None  # the cause may hold the password of the tracking URI


def ensure_experiment(client: Client, name: str) -> str:
    """Return the id of the experiment of this name; it is made, or restored from the bin, where it is not there.

    Where nobody has described it, it is described. Raises TrackingError where its files cannot be reached.
    """
    existing = client.get_experiment_by_name(name)
    if existing and existing.artifact_location.startswith("mlflow-artifacts:"):
        _require_server(client, name)
    if existing and existing.lifecycle_stage == "deleted":
        client.restore_experiment(existing.experiment_id)
    experiment_id = str(existing.experiment_id) if existing else _make_experiment(client, name)
    if not (existing and existing.tags.get(NOTE)):
        for key, value in describe_experiment(name, experiment_id, show_uri(client.tracking_uri)).items():
            client.set_experiment_tag(experiment_id, key, value)
    return experiment_id


def _require_server(client: Client, name: str) -> None:
    """Raise TrackingError where the store is not reached through the server that keeps an experiment's files."""
    if not client.tracking_uri.startswith(("http://", "https://")):
        raise TrackingError(
            f"the files of the experiment {name!r} are kept by an MLflow server, and {show_uri(client.tracking_uri)} "
            "is only its database: name the server in MLFLOW_TRACKING_URI, or choose another experiment; nothing was "
            "trained"
        )


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
        told, given = redact_all(tags), redact_all(parameters)
        run = client.create_run(ensure_experiment(client, experiment), run_name=redact_text(name), tags=told)
        run_id = str(run.info.run_id)
        params = [Param(key, format_parameter(value)[:MOST_PARAMETER_CHARACTERS]) for key, value in given.items()]
        client.log_batch(run_id, params=params)
    return run_id


def reopen(client: Client, run_id: str, tags: Mapping[str, str]) -> None:
    """Go on with a run that was stopped: RUNNING again, with the tags of who goes on."""
    with translated(f"the MLflow run {run_id} cannot be gone on with"):
        client.update_run(run_id, status="RUNNING")
        for key, value in tags.items():
            client.set_tag(run_id, key, redact_text(value))
        if "shardline.error" in client.get_run(run_id).data.tags:
            client.delete_tag(run_id, "shardline.error")
    outbox = outboxes() / run_id
    with keeping(outbox):
        (outbox / STATUS).unlink(missing_ok=True)


def format_parameter(value: object) -> str:
    """Return a parameter's value as it is recorded: text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
