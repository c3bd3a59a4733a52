"""What earlier runs mean for this one: which to go on with, which to repeat, and whether anything is left to do.

The last success is the latest FINISHED run of the experiment with the same settings (`digest_settings` in .lineage).
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from prefect.artifacts import create_link_artifact
from prefect.logging import get_run_logger
from pydantic import JsonValue

from tasks.errors import CheckpointError, ConfigurationError
from tasks.naming import escape_markdown
from tasks.parameters import ADDRESSES, MODEL_PARAMETERS, Mark, TrainingParameters
from tasks.policy import step
from tasks.redaction import is_withheld, redact_all
from tasks.runs.checkpoints import describe_change
from tasks.runs.events import announce_data
from tasks.runs.lineage import CODE, CONTRACT, FINGERPRINT, KEY, TEST_FINGERPRINT, digest_code, digest_settings
from tasks.runs.links import page_of
from tasks.tracking.client import connect, format_parameter, tracking_uri
from tasks.tracking.processes import PROCESS, is_gone
from tasks.tracking.recorded import end_run, find_run, find_runs

if TYPE_CHECKING:
    from tasks.streaming.manifest import Manifest
    from tasks.tracking.client import Client

HOPELESS = ("NonFiniteLossError", "ConfigurationError")  # repeated, they would end the same way
SAME = "Data, code and parameters are those of an earlier success"


def close_abandoned(client: Client, experiment: str) -> None:
    """End the runs that MLflow takes for RUNNING though their process on this host is gone, as KILLED."""
    for run in find_runs(client, experiment, status="RUNNING"):
        if is_gone(run.tags.get(PROCESS)):
            end_run(client, run.run_id, "KILLED")
            get_run_logger().info("Run %s was left RUNNING by a process that is gone: KILLED", run.run_id)


def find_unfinished(
    client: Client,
    experiment: str,
    recorded: Mapping[str, JsonValue],
    key: str,
    manifest: Manifest,
    checkpoint_url: str,
) -> str | None:
    """Return the id of the run to go on with, as the parameter `resume` says, or None where a new one is to be started.

    It has the settings of which `key` is the digest.

    Raises ConfigurationError for a named run that is finished, unknown or of other settings, and CheckpointError for
    one whose data has changed or that has no checkpoint.
    """
    from tasks.learning.checkpoints import Checkpoints

    close_abandoned(client, experiment)
    resume = str(recorded["resume"])
    if resume == "never":
        return None
    if resume != "auto":
        _require_resumable(client, resume, recorded, key, manifest, checkpoint_url)
        return resume
    for run in find_runs(client, experiment, tags={KEY: key, FINGERPRINT: manifest.fingerprint}):
        stopped = run.status in ("KILLED", "FAILED")
        hopeless = run.tags.get("shardline.error", "").startswith(HOPELESS)
        if run.status == "FINISHED":
            return None  # the same work was done since: whoever starts it again wants it anew
        if stopped and not hopeless and Checkpoints(checkpoint_url, run.run_id).latest():
            get_run_logger().info("Going on with run %s, which was %s", run.run_id, run.status)
            return run.run_id
    return None


def _require_resumable(
    client: Client,
    run_id: str,
    recorded: Mapping[str, JsonValue],
    key: str,
    manifest: Manifest,
    checkpoint_url: str,
) -> None:
    from tasks.learning.checkpoints import Checkpoints

    run = find_run(client, run_id)
    if run is None:
        raise ConfigurationError(f"resume names run {run_id}, which MLflow does not know")
    if run.status == "FINISHED":
        raise ConfigurationError(f"resume names run {run_id}, which is finished: there is nothing to go on with")
    process = str(run.tags.get(PROCESS))
    if run.status == "RUNNING" and process.startswith(f"{platform.node()} ") and not is_gone(process):
        raise ConfigurationError(f"resume names run {run_id}, which is running: stop it first")
    if run.tags.get(KEY) != key:
        differing = [
            f"{name} is {format_parameter(value)}, was {run.params.get(name)}"
            for name, value in redact_all(TrainingParameters.telling(recorded)).items()
            if run.params.get(name) != format_parameter(value)
        ]
        raise ConfigurationError(f"resume names run {run_id}, which has other settings: {'; '.join(differing)}")
    if run.tags.get(FINGERPRINT) != manifest.fingerprint:
        raise CheckpointError(
            f"the data of run {run_id} has changed since: {describe_change(checkpoint_url, run_id, manifest)}; "
            "start anew with resume=never"
        )
    if not Checkpoints(checkpoint_url, run_id).latest():
        raise CheckpointError(f"run {run_id} has no whole checkpoint in {checkpoint_url}: start anew with resume=never")


def find_unfinished_search(client: Client, experiment: str, resume: str, tags: Mapping[str, str]) -> str | None:
    """Return the id of the search to go on with, as the parameter `resume` says, or None for a new one.

    Raises ConfigurationError for a named run that is unknown, is finished or has other settings or data.
    """
    close_abandoned(client, experiment)
    if resume == "never":
        return None
    same = {name: tags[name] for name in (KEY, FINGERPRINT)}
    for run in find_runs(client, experiment, tags=same):
        if resume == run.run_id and run.status in ("KILLED", "FAILED"):
            return run.run_id
        if resume == "auto":  # after a finished one, whoever starts it again wants it anew
            return None if run.status in ("FINISHED", "RUNNING") else run.run_id
    if resume != "auto":
        raise ConfigurationError(f"resume names run {resume}, which is no stopped search of these settings and data")
    return None


def repeat_parameters(given: TrainingParameters) -> TrainingParameters:
    """Return the parameters of the run that `like` names; those given here with another value than their default win.

    Raises ConfigurationError for a run that MLflow does not know or that was not a training run.
    """
    run = find_run(connect(), str(given.like))
    if run is None:
        raise ConfigurationError(f"like names run {given.like}, which MLflow does not know")
    if run.tags.get("shardline.flow") != "training":
        raise ConfigurationError(f"like names run {given.like}, which is not a training run")
    fields = TrainingParameters.model_fields
    carried = fields.keys() - TrainingParameters.marked(Mark.OWN)
    recorded = {name: _read(name, text) for name, text in run.params.items() if name in fields}
    kept = {name: value for name, value in _restore_empty(recorded, run.tags.get(KEY)).items() if name in carried}
    if given.preset != kept.get("preset"):  # what the other preset stood for is not carried over
        kept = {name: value for name, value in kept.items() if name not in MODEL_PARAMETERS}
    changed = {name: value for name, value in given.model_dump().items() if value != fields[name].default}
    if given.bucket_id:
        kept |= {"shards": None, "test_shards": None}
    for name in ADDRESSES:
        if name not in changed and is_withheld(str(kept.get(name))):
            raise ConfigurationError(
                f"like names run {given.like}, whose {name} are recorded without user, password or signature, as "
                f"{kept[name]}: give --{name.replace('_', '-')} too, signed anew where the signature has expired"
            )
    if run.tags.get(CODE) != digest_code():
        commit = run.tags.get("mlflow.source.git.commit", "unknown")
        get_run_logger().warning("Run %s was made by other code or libraries (commit %s)", given.like, commit)
    return TrainingParameters(**(kept | changed))


def _restore_empty(recorded: Mapping[str, Any], key: str | None) -> Mapping[str, Any]:
    """Return recorded parameters with an empty batch_size where the settings of which `key` is the digest had none.

    What is recorded then is the number of rows that it stood for, of which the settings know nothing.
    """
    empty = {**recorded, "batch_size": None}
    return empty if digest_settings(recorded) != key == digest_settings(empty) else recorded


def _read(name: str, text: str) -> Any:
    """Return a recorded parameter's value: null, text where it is text (an account's digits too), else JSON."""
    annotation = TrainingParameters.model_fields[name].annotation
    is_text = str in (annotation, *get_args(annotation)) or get_origin(annotation) is Literal
    try:
        return text if is_text and text != "null" else json.loads(text)
    except json.JSONDecodeError:
        raise ConfigurationError(f"MLflow kept only the beginning of the parameter {name}: give it here too") from None


def require_same_data(given: TrainingParameters, manifest: Manifest) -> None:
    """Raise ConfigurationError where the shards are not those of the run that `like` names."""
    if not given.like:
        return
    run = find_run(connect(), given.like)
    there = run and run.tags.get(FINGERPRINT)
    if there != manifest.fingerprint:
        raise ConfigurationError(
            f"like names run {given.like}, whose shards had the fingerprint {there}; these have "
            f"{manifest.fingerprint}: the data has changed; give the parameters themselves to train on it"
        )


@step("compare with the last success")
def compare_with_last_success(experiment: str, tags: Mapping[str, str], *, skip: bool) -> str | None:
    """Announce data that changed since the last success; with `skip`, say that nothing did.

    `tags` are those that the run would have. Raises TrackingError where MLflow does not answer.
    """
    found = find_runs(connect(), experiment, status="FINISHED", tags={KEY: tags[KEY]}, most=1)
    if not found:
        return None
    last = found[0]
    compared = (FINGERPRINT, TEST_FINGERPRINT, CODE, CONTRACT)
    different = [name for name in compared if last.tags.get(name) != tags.get(name)]
    if FINGERPRINT in different:
        announce_data(tags, last)
    if not skip:
        return None
    if different:
        names = ", ".join(name.removeprefix("shardline.") for name in different)
        get_run_logger().info("Not the same as run %s, the last success: %s", last.run_id, names)
        return None
    page = page_of(tracking_uri(), last.experiment_id, last.run_id)
    if page:
        create_link_artifact(
            page, link_text=escape_markdown(f"MLflow run {last.name}"), key="unchanged", description=SAME
        )
    return f"{SAME}: MLflow run {last.run_id}" + (f", {page}" if page else "")
