"""Runs that did not end: closed where their process is gone, and found again by the next run that would repeat them."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.logging import get_run_logger

from tasks.errors import CheckpointError, ConfigurationError
from tasks.parameters import TrainingParameters
from tasks.streaming.manifest import Manifest
from tasks.tracking.outbox import STATE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

KEY, FINGERPRINT, PROCESS = "shardline.settings", "shardline.fingerprint", "shardline.process"
HOPELESS = ("NonFiniteLossError", "ConfigurationError")  # repeated, they would end the same way


def settings_key(recorded: Mapping[str, Any]) -> str:
    """A digest of the recorded parameters that the loss curve depends on."""
    return hashlib.sha256(json.dumps(TrainingParameters.telling(recorded), sort_keys=True).encode()).hexdigest()


def this_process() -> str:
    """This host, its boot, the process and its start, so that another run can tell whether it still lives."""
    return " ".join((platform.node(), *_place(), str(os.getpid()), _start_of(os.getpid()) or "unknown"))


def _place() -> tuple[str, str]:
    """This boot of the machine and the space of its process numbers: a container has one of its own."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return boot, str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return "unknown", "unknown"


def _start_of(pid: int) -> str | None:
    """When a process started, in a form that no correction of the clock changes; None without such a process."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            return stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        except OSError:
            return None
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.NoSuchProcess:
        return None


def is_gone(process: str | None) -> bool:
    """Whether a process of this host has ended; of another host's or another container's nothing is known."""
    match str(process).rsplit(" ", 4):
        case [host, boot, space, pid, start] if host == platform.node() and pid.isdigit():
            if boot != _place()[0]:
                return True  # the machine was started again since
            return space == _place()[1] and _start_of(int(pid)) != start
    return False


def close_abandoned(client: MlflowClient, experiment: str) -> None:
    """End the runs that MLflow takes for RUNNING though their process on this host is gone, as KILLED."""
    for run in _search(client, experiment, "attributes.status = 'RUNNING'"):
        if is_gone(run.data.tags.get(PROCESS)):
            client.set_terminated(run.info.run_id, "KILLED")
            get_run_logger().info("Run %s was left RUNNING by a process that is gone: KILLED", run.info.run_id)


def find_unfinished(
    client: MlflowClient,
    experiment: str,
    recorded: Mapping[str, Any],
    manifest: Manifest,
    checkpoint_url: str,
) -> str | None:
    """The id of the run to go on with, as the parameter `resume` says, or None where a new one is to be started.

    Raises ConfigurationError for a named run that is finished, unknown or of other settings, and CheckpointError for
    one whose data has changed or that has no checkpoint.
    """
    from tasks.learning.checkpoints import Checkpoints

    close_abandoned(client, experiment)
    resume, key = recorded["resume"], settings_key(recorded)
    if resume == "never":
        return None
    if resume != "auto":
        _check_named(client, resume, recorded, key, manifest, checkpoint_url)
        return str(resume)
    same = f"tags.`{KEY}` = '{key}' and tags.`{FINGERPRINT}` = '{manifest.fingerprint}'"
    for run in _search(client, experiment, same):
        stopped = run.info.status in ("KILLED", "FAILED")
        hopeless = run.data.tags.get("shardline.error", "").startswith(HOPELESS)
        if run.info.status == "FINISHED":
            return None  # the same work was done since: whoever starts it again wants it anew
        if stopped and not hopeless and Checkpoints(checkpoint_url, run.info.run_id).latest():
            get_run_logger().info("Going on with run %s, which was %s", run.info.run_id, run.info.status)
            return str(run.info.run_id)
    return None


def _search(client: MlflowClient, experiment: str, criteria: str) -> list[MlflowRun]:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return []
    order = ["attributes.start_time DESC"]
    return list(client.search_runs([found.experiment_id], criteria, order_by=order, max_results=100))


def _check_named(
    client: MlflowClient,
    run_id: str,
    recorded: Mapping[str, Any],
    key: str,
    manifest: Manifest,
    checkpoint_url: str,
) -> None:
    from mlflow.exceptions import MlflowException

    from tasks.learning.checkpoints import Checkpoints
    from tasks.tracking.client import written

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise ConfigurationError(f"resume names run {run_id}, which MLflow does not know") from error
    if run.info.status == "FINISHED":
        raise ConfigurationError(f"resume names run {run_id}, which is finished: there is nothing to go on with")
    process = str(run.data.tags.get(PROCESS))
    if run.info.status == "RUNNING" and process.startswith(f"{platform.node()} ") and not is_gone(process):
        raise ConfigurationError(f"resume names run {run_id}, which is running: stop it first")
    if run.data.tags.get(KEY) != key:
        differing = [
            f"{name} is {written(value)}, was {run.data.params.get(name)}"
            for name, value in TrainingParameters.telling(recorded).items()
            if run.data.params.get(name) != written(value)
        ]
        raise ConfigurationError(f"resume names run {run_id}, which has other settings: {'; '.join(differing)}")
    if run.data.tags.get(FINGERPRINT) != manifest.fingerprint:
        raise CheckpointError(
            f"the data of run {run_id} has changed since: {describe_change(checkpoint_url, run_id, manifest)}; "
            "start anew with resume=never"
        )
    if not Checkpoints(checkpoint_url, run_id).latest():
        raise CheckpointError(f"run {run_id} has no whole checkpoint in {checkpoint_url}: start anew with resume=never")


def describe_change(checkpoint_url: str, run_id: str, manifest: Manifest) -> str:
    """Which shards differ from those of a run's checkpoint, the first few by name."""
    from tasks.learning.checkpoints import Checkpoints

    before = Checkpoints(checkpoint_url, run_id).latest()
    if before is None:
        return "its manifest is not at hand"
    old = before.facts.get("shards", {})
    new = manifest.etags
    changes = [f"{uri} is gone" for uri in old if uri not in new]
    changes += [f"{uri} is new" for uri in new if uri not in old]
    changes += [f"{uri} was replaced" for uri in new if uri in old and old[uri] != new[uri]]
    return ", ".join(changes[:5]) + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")


def discard_checkpoints(given: str | None, run_id: str) -> None:
    """Delete the checkpoints of a run that has ended well: its weights stand in its record."""
    from tasks.learning.checkpoints import Checkpoints

    try:
        Checkpoints(checkpoint_folder(given), run_id).delete()
    except CheckpointError as error:
        get_run_logger().warning("The run is complete, and its checkpoints are left behind: %s", error)


def check_checkpoint_url(url: str) -> None:
    """Raise ConfigurationError for a URL whose scheme no installed package knows."""
    import fsspec

    try:
        fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise ConfigurationError(f"checkpoint_url {url!r} cannot be used: {error}") from error


def checkpoint_folder(given: str | None) -> str:
    """Where checkpoints are kept: the parameter, else .shardline/checkpoints in the working directory."""
    return given or str((STATE / "checkpoints").absolute())
