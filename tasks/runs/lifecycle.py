"""The life of a run in MLflow beside its flow run in Prefect: opened, linked both ways, ended with its status."""

from __future__ import annotations

import getpass
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING

from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import JsonValue

from tasks.errors import ConfigurationError, TrackingError
from tasks.runs.lineage import VERSIONS_OF, describe_commit
from tasks.runs.links import page_in_prefect, page_of
from tasks.tracking.client import begin, connect, reopen, tracking_uri
from tasks.tracking.inputs import DatasetFacts, keep_inputs
from tasks.tracking.outbox import Outbox, held
from tasks.tracking.processes import PROCESS, this_process
from tasks.tracking.recorded import read_run
from tasks.tracking.recovery import complete_outbox, complete_records

if TYPE_CHECKING:
    from tasks.streaming.manifest import Manifest
    from tasks.tracking.client import Client


@dataclass(frozen=True)
class Run:
    """An MLflow run: its id, its name, and the address of its page."""

    run_id: str
    name: str
    url: str


@contextmanager
def tracked(
    experiment: str,
    parameters: Mapping[str, JsonValue],
    tags: Mapping[str, str],
    find_unfinished: Callable[[Client], str | None] = lambda _: None,
) -> Iterator[Run]:
    """Open an MLflow run around the block; it ends FINISHED with a complete record, FAILED or KILLED.

    It is a new run, unless `find_unfinished` yields the id of one that is to go on.

    Raises TrackingError where MLflow does not answer at the start (nothing was done), or its record stays incomplete.
    """
    client = connect()
    for problem in complete_records(client).problems:
        get_run_logger().warning("%s", problem)
    name = str(flow_run.name or "run")
    tags = {**context(), **tags}
    run_id = find_unfinished(client)
    if run_id:
        reopen(client, run_id, tags)
    else:
        run_id = begin(client, experiment=experiment, name=name, parameters=parameters, tags=tags)
    run = Run(run_id, name, page_of(tracking_uri(), read_run(client, run_id).experiment_id, run_id))
    get_run_logger().info("Recording in MLflow: %s", run.url)
    outbox = Outbox(run_id)
    with held(outbox.path) as free:
        if not free:
            raise ConfigurationError(f"another process goes on with run {run_id} already: resume=never starts anew")
        try:
            yield run
        except BaseException as error:
            # Ctrl-C, SIGTERM and a cancelled flow arrive as BaseException: somebody stopped the run
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            try:
                outbox.tag({"shardline.error": f"{type(error).__name__}: {error}"[:5000]})
                complete_outbox(client, outbox.path, status)
            except TrackingError as incomplete:
                get_run_logger().warning("%s", incomplete)
            raise
        complete_outbox(client, outbox.path, "FINISHED")


def note_data(run_id: str, data: Mapping[str, tuple[str, Manifest]]) -> None:
    """Put a run's data sets, {context: (glob, manifest)}, into its outbox; nothing is read."""
    facts = {
        context: DatasetFacts(
            uri=uri,
            fingerprint=manifest.fingerprint,
            columns=manifest.columns,
            rows=manifest.rows,
            shards=len(manifest.shards),
            size=manifest.size,
        )
        for context, (uri, manifest) in data.items()
    }
    keep_inputs(run_id, facts)


def context() -> dict[str, str]:
    """Return tags that say where, by what and from which code a run was made."""
    tags = {f"version.{name}": version(name) for name in VERSIONS_OF}
    tags["version.python"] = platform.python_version()
    tags["host.name"] = platform.node()
    with suppress(OSError, KeyError):  # a container may run as a user that has no name
        tags["mlflow.user"] = getpass.getuser()
    tags |= {"mlflow.source.name": f"flows.{flow_run.flow_name}", "mlflow.source.type": "LOCAL"}
    tags[PROCESS] = this_process()
    tags |= describe_commit()
    if flow_run.id:
        tags["prefect.flow_run_id"] = str(flow_run.id)
        tags["prefect.flow_run_name"] = str(flow_run.name)
        tags["prefect.flow_run_url"] = page_in_prefect()
    return tags
