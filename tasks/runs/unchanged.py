"""Whether a run would only repeat the last success: told by data, code and parameters, and ended then, or announced.

The last success is the latest FINISHED run of the experiment with the same settings (`settings_key` in .resuming).
Events that `deployments/automations.py` listens to are emitted here: the data of a training changed, its champion did.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from prefect.artifacts import create_link_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.states import Completed

from tasks.errors import TrackingError
from tasks.runs.lifecycle import VERSIONS_OF, Run, page_of
from tasks.runs.resuming import FINGERPRINT, KEY
from tasks.streaming.manifest import Manifest
from tasks.tracking.registry import name_of_model

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as MlflowRun

CODE, TEST_FINGERPRINT = "shardline.code", "shardline.test_fingerprint"
SAME = "Data, code and parameters are those of an earlier success"
DATA_CHANGED, CHAMPION_CHANGED = "shardline.data.changed", "shardline.champion.changed"


def tags_of_work(test: Manifest | None) -> dict[str, str]:
    """The tags that tell, beside the settings' key and the shards' fingerprint, whether a run repeats another."""
    return {CODE: digest_code(), TEST_FINGERPRINT: test.fingerprint if test else "none"}


def digest_code() -> str:
    """A digest of the modules of flows/ and tasks/, committed or not, and of the libraries' versions."""
    root = Path(__file__).parents[2]
    digest = hashlib.sha256(json.dumps({name: version(name) for name in VERSIONS_OF}).encode())
    for path in sorted(path for folder in ("flows", "tasks") for path in (root / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def compare_with_last_success(experiment: str, tags: Mapping[str, str], *, skip: bool) -> State[str] | None:
    """Announce data that changed since the last success; with `skip`, the state to end in where nothing did.

    `tags` are those that the run would have. Raises TrackingError where MLflow does not answer.
    """
    from tasks.tracking.client import connect, tracking_uri, translated

    client = connect()
    with translated("the last success cannot be looked up in MLflow"):
        last = find_last_success(client, experiment, tags[KEY])
    if last is None:
        return None
    different = [name for name in (FINGERPRINT, TEST_FINGERPRINT, CODE) if last.data.tags.get(name) != tags[name]]
    if FINGERPRINT in different:
        announce_data(tags, last)
    if not skip:
        return None
    if different:
        names = ", ".join(name.removeprefix("shardline.") for name in different)
        get_run_logger().info("Not the same as run %s, the last success: %s", last.info.run_id, names)
        return None
    page = page_of(tracking_uri(), last.info.experiment_id, last.info.run_id)
    create_link_artifact(page, link_text=f"MLflow run {last.info.run_name}", key="unchanged", description=SAME)
    message = f"{SAME}: MLflow run {last.info.run_id}, {page}"
    return Completed(name="Unchanged", message=message, data=message)


def find_last_success(client: MlflowClient, experiment: str, key: str) -> MlflowRun | None:
    """The latest FINISHED run with these settings, or None."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    runs = client.search_runs(
        [found.experiment_id],
        f"attributes.status = 'FINISHED' and tags.`{KEY}` = '{key}'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return runs[0] if runs else None


def announce_data(tags: Mapping[str, str], last: MlflowRun) -> None:
    """Emit the event that the shards are not those of the last success."""
    before, now = last.data.tags.get(FINGERPRINT, ""), tags[FINGERPRINT]
    get_run_logger().info("The data has changed since run %s: fingerprint %s, was %s", last.info.run_id, now, before)
    emit_event(
        DATA_CHANGED,
        resource={
            "prefect.resource.id": f"shardline.data.{tags[KEY][:32]}",
            "prefect.resource.name": tags["shardline.shards"],
        },
        payload={"fingerprint": now, "before": before, "last_success": last.info.run_id},
    )


def announce_champion(experiment: str, run: Run) -> None:
    """Emit the event that a finished run's model is the champion now, where it is."""
    from mlflow.exceptions import MlflowException

    from tasks.tracking.client import connect

    name = name_of_model(experiment)
    try:
        champion = connect().get_model_version_by_alias(name, "champion")
    except (MlflowException, TrackingError):
        return  # there is none, or nobody to ask: the run itself is complete
    if champion.run_id != run.run_id:
        return
    emit_event(
        CHAMPION_CHANGED,
        resource={"prefect.resource.id": f"shardline.model.{name}", "prefect.resource.name": name},
        payload={"version": str(champion.version), "run": run.url, "description": champion.description or ""},
    )
