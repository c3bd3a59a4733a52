"""The life of a run in MLflow beside its flow run in Prefect: opened, linked both ways, ended with its status."""

from __future__ import annotations

import getpass
import json
import platform
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from tasks.errors import ConfigurationError, TrackingError
from tasks.runs.resuming import PROCESS, this_process
from tasks.streaming.manifest import Manifest
from tasks.tracking.recovery import complete_outbox, complete_records

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERSIONS_OF = ("prefect", "torch", "mlflow", "s3fs", "boto3", "pyarrow", "numpy")
MOST_DATASET_NAME, MOST_DATASET_DIGEST = 500, 36  # MLflow's own limits
LOCAL_MLFLOW_PAGES = "http://127.0.0.1:5000"  # where `make ui` serves a store that has no server of its own


@dataclass(frozen=True)
class Run:
    """An MLflow run: its id, its name, and the address of its page."""

    run_id: str
    name: str
    url: str


@contextmanager
def tracked(
    experiment: str,
    parameters: Mapping[str, Any],
    tags: Mapping[str, str],
    find_unfinished: Callable[[MlflowClient], str | None] = lambda _: None,
) -> Iterator[Run]:
    """Open an MLflow run around the block; it ends FINISHED with a complete record, FAILED or KILLED.

    It is a new run, unless `find_unfinished` yields the id of one that is to go on.

    Raises TrackingError where MLflow does not answer at the start (nothing was done), or its record stays incomplete.
    """
    from tasks.tracking import client as record
    from tasks.tracking.outbox import Outbox, held

    client = record.connect()
    for problem in complete_records(client)[1]:
        get_run_logger().warning("%s", problem)
    name = str(flow_run.name or "run")
    tags = {**context(), **tags}
    run_id = find_unfinished(client)
    if run_id:
        record.reopen(client, run_id, tags)
    else:
        run_id = record.begin(client, experiment=experiment, name=name, parameters=parameters, tags=tags)
    run = Run(run_id, name, page_of(record.tracking_uri(), client.get_run(run_id).info.experiment_id, run_id))
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
            outbox.tag({"shardline.error": f"{type(error).__name__}: {error}"[:5000]})
            try:
                complete_outbox(client, outbox.path, status)
            except TrackingError as incomplete:
                get_run_logger().warning("%s", incomplete)
            raise
        complete_outbox(client, outbox.path, "FINISHED")


def note_data(run_id: str, data: Mapping[str, tuple[str, Manifest]]) -> None:
    """Put a run's data sets into its outbox, as MLflow's dataset inputs: {context: (glob, manifest)}; nothing is read.

    The digest is the fingerprint, cut to the 36 characters that MLflow keeps; the profile has all of it.
    """
    from tasks.tracking.outbox import INPUTS, Outbox

    entries = [
        {"context": context, "dataset": describe_dataset(uri, manifest)} for context, (uri, manifest) in data.items()
    ]
    (Outbox(run_id).path / INPUTS).write_text(json.dumps(entries), encoding="utf-8")


def describe_dataset(uri: str, manifest: Manifest) -> dict[str, str]:
    """The shards of a manifest in the words of MLflow's Dataset."""
    scheme = urlsplit(uri).scheme
    kind = {"": "local", "file": "local", "https": "http", "s3a": "s3"}.get(scheme, scheme)
    columns = [{"type": "double", "name": name, "required": True} for name in manifest.columns]
    facts = {"num_rows": manifest.rows, "num_shards": len(manifest.shards), "bytes": manifest.size}
    return {
        "name": uri[:MOST_DATASET_NAME],
        "digest": manifest.fingerprint[:MOST_DATASET_DIGEST],
        "source_type": kind,
        "source": json.dumps({"url" if kind == "http" else "uri": uri}),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps({**facts, "fingerprint": manifest.fingerprint}),
    }


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """The address of a run's page: on the tracking server, else where `make ui` serves the local store."""
    from tasks.tracking.client import shown

    base = shown(uri).rstrip("/") if urlsplit(uri).scheme in ("http", "https") else LOCAL_MLFLOW_PAGES
    # without the workflow type MLflow opens its pages for language models, which are empty for such a run
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def context() -> dict[str, str]:
    """Tags that say where, by what and from which code a run was made."""
    tags = {f"version.{name}": version(name) for name in VERSIONS_OF}
    tags["version.python"] = platform.python_version()
    tags["host.name"] = platform.node()
    with suppress(OSError, KeyError):  # a container may run as a user that has no name
        tags["mlflow.user"] = getpass.getuser()
    tags |= {"mlflow.source.name": f"flows.{flow_run.flow_name}", "mlflow.source.type": "LOCAL"}
    tags[PROCESS] = this_process()
    tags |= code()
    if flow_run.id:
        tags["prefect.flow_run_id"] = str(flow_run.id)
        tags["prefect.flow_run_name"] = str(flow_run.name)
        tags["prefect.flow_run_url"] = page_in_prefect()
    return tags


def page_in_prefect() -> str:
    """The address of this flow run's page; empty where its server is a temporary one, which ends with the run."""
    from prefect.settings import PREFECT_UI_URL
    from prefect.utilities.urls import url_for

    return str(url_for("flow-run", obj_id=flow_run.id) or "") if PREFECT_UI_URL.value() and flow_run.id else ""


def code() -> dict[str, str]:
    """The git commit of this code and whether it was changed since; nothing where it is not a checkout."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"mlflow.source.git.commit": git("rev-parse", "HEAD"), "git.changed": str(bool(changed)).lower()}
    except (OSError, subprocess.CalledProcessError):
        return {}
