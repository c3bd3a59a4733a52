"""The life of a run in MLflow beside its flow run in Prefect: opened, linked both ways, ended with its status."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_link_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from pydantic import JsonValue

from tasks.errors import ConfigurationError, TrackingError
from tasks.naming import escape_markdown
from tasks.policy import step, untracked
from tasks.runs.lineage import describe_commit, find_user, read_versions
from tasks.runs.links import PAGES_END, page_in_prefect, page_of
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
    """An MLflow run: its id, its name, the address of its page, empty where no server shows it, and its parameters.

    The parameters are as MLflow has them: of a run that is gone on with, those that it began with.
    """

    run_id: str
    name: str
    url: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """Where it is to be seen, on a line of text."""
        return self.url or f"run {self.run_id}; `make ui` shows it"

    @property
    def pages(self) -> str:
        """Where it is to be seen from its end on, a line each."""
        again = ["make ui, which shows both pages again:"] if self.url and os.environ.get(PAGES_END) else []
        return "\n           ".join([*again, self.place, page_in_prefect() or "(no page in Prefect)"])

    @property
    def link(self) -> str:
        """The same in markdown."""
        return f"[This run in MLflow]({self.url})" if self.url else f"MLflow run `{self.run_id}`"


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
    run = replace(
        open_record(experiment, untracked(parameters), untracked({**context(), **tags}), untracked(find_unfinished))
    )
    get_run_logger().info("Recording in MLflow: %s", run.place)
    client, outbox = connect(), Outbox(run.run_id)
    with held(outbox.path) as free:
        if not free:
            raise ConfigurationError(f"another process goes on with run {run.run_id} already: resume=never starts anew")
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
        complete_record(untracked(client), outbox.path)


@step("open the record")
def open_record(
    experiment: str,
    parameters: Mapping[str, JsonValue],
    tags: Mapping[str, str],
    find_unfinished: Callable[[Client], str | None],
) -> Run:
    """Begin a run in MLflow, or go on with the unfinished one; complete first what earlier ones left.

    A link artifact leads to its page, where a server shows it.
    """
    client = connect()
    for problem in complete_records(client).problems:
        get_run_logger().warning("%s", problem)
    name = str(flow_run.name or "run")
    run_id = find_unfinished(client)
    if run_id:
        reopen(client, run_id, tags)
    else:
        run_id = begin(client, experiment=experiment, name=name, parameters=parameters, tags=tags)
    recorded = read_run(client, run_id)
    run = Run(run_id, name, page_of(tracking_uri(), recorded.experiment_id, run_id), recorded.params)
    if run.url:
        create_link_artifact(
            run.url, link_text=escape_markdown(f"MLflow run {name}"), key="mlflow", description="This run in MLflow"
        )
    return run


@step("complete the record")
def complete_record(client: Client, outbox: Path) -> None:
    """Send to MLflow what it lacks of the run, with its model, and end the run there."""
    complete_outbox(client, outbox, "FINISHED")


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
    tags = {f"version.{name}": version for name, version in read_versions().items()}
    tags["host.name"] = platform.node()
    if user := find_user():
        tags["mlflow.user"] = user
    tags |= {"mlflow.source.name": f"flows.{flow_run.flow_name}", "mlflow.source.type": "LOCAL"}
    tags[PROCESS] = this_process()
    tags |= describe_commit()
    if flow_run.id:
        tags["prefect.flow_run_id"] = str(flow_run.id)
        tags["prefect.flow_run_name"] = str(flow_run.name)
        tags["prefect.flow_run_url"] = page_in_prefect()
    return tags
